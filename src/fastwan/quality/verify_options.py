"""Options of ``verify`` that only make sense together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastwan.errors import BadInput


def check_options(
    device: str, checkpoint: str | None, lora: Sequence[str], picture: Path | None
) -> None:
    """Refuse options that contradict each other, see `verify_bundle`.

    Raises:
        BadInput: an unknown device, a LoRA without a checkpoint, or a picture on the CPU.
    """
    if device not in ("cpu", "emulated"):
        raise BadInput(f"unknown device {device!r}", where="--device", fix="cpu or emulated")
    if lora and checkpoint is None:
        raise BadInput(
            "a LoRA is merged into a checkpoint's weights",
            where="--lora",
            fix="pass --checkpoint too; without it the recorded digests are compared",
        )
    if picture is not None and device == "cpu":
        raise BadInput("no picture is made on the CPU", where="--picture", fix="--device emulated")
