"""Options of ``verify`` that only make sense together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastwan.errors import BadInput


def check_options(
    device: str,
    checkpoint: str | None,
    *,
    taehv: Path | None,
    lora: Sequence[str],
    picture: Path | None,
    checks: Sequence[str],
) -> None:
    """Refuse options that contradict each other, see `verify_bundle`.

    Raises:
        BadInput: an unknown device, a LoRA or a decoder's file without a checkpoint, a picture on
            the CPU, or a choice of checks at the full size.
    """
    if device not in ("cpu", "emulated"):
        raise BadInput(f"unknown device {device!r}", where="--device", fix="cpu or emulated")
    if lora and checkpoint is None:
        raise BadInput(
            "a LoRA is merged into a checkpoint's weights",
            where="--lora",
            fix="pass --checkpoint too; without it the recorded digests are compared",
        )
    if taehv is not None and checkpoint is None:
        raise BadInput(
            "a decoder's file is compared as part of a checkpoint",
            where="--taehv",
            fix="pass --checkpoint too; without it the recorded digests are compared",
        )
    if checks and device != "cpu":
        raise BadInput(
            f"the checks of --device {device} are not chosen among", where="--check", fix="leave it"
        )
    if picture is not None and device == "cpu":
        raise BadInput("no picture is made on the CPU", where="--picture", fix="--device emulated")
