"""Scale of a LoRA: alpha / rank, from wherever its trainer has left the alpha."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastwan.errors import BadInput
from fastwan.strict_json import parse_json, read_json

METADATA = "lora_adapter_metadata"
"""Entry of a file's metadata where diffusers leaves PEFT's configuration, as JSON."""
CONFIG = "adapter_config.json"
"""File beside PEFT's own weights with the same."""


@dataclass(frozen=True)
class Scales:
    """Where alphas are that no tensor holds.

    Attributes:
        alpha: of every module; None where it is its rank, which is a scale of 1.
        patterns: alpha by the end of a module's name, or a pattern for it.
        rooted: divide by the root of the rank (rank-stabilised LoRA).
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    rooted: bool = False

    def of(self, module: str, rank: int, alpha: float | None) -> float:
        """Factor of a module's product.

        Args:
            alpha: of a tensor of the file, which counts before all others.
        """
        if alpha is None:
            named = (value for name, value in self.patterns.items() if _matches(name, module))
            alpha = next(named, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rooted else rank)


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error:
        return False


def read_scales(path: Path, metadata: Mapping[str, str], *, peft: bool) -> Scales:
    """Scales of a LoRA file.

    Args:
        metadata: of the file.
        peft: its keys are PEFT's own, which leaves the alpha in a file beside.

    Raises:
        BadInput: no such file, a configuration that cannot be read, or one of another method.
    """
    if METADATA in metadata:
        packed = parse_json(metadata[METADATA].encode(), f"{path}: {METADATA}")
        prefix = "transformer."
        fields = {name.removeprefix(prefix): value for name, value in packed.items()}
        return _scales(fields, f"{path}: {METADATA}")
    if not peft:
        return Scales()
    beside = path.parent / CONFIG
    if not beside.is_file():
        raise BadInput(
            f"there is no {CONFIG} beside it, which has the alpha of PEFT's adapters",
            where=str(path),
            fix="give the file in the folder that save_pretrained wrote",
        )
    return _scales(read_json(beside), str(beside))


def _scales(fields: Mapping[str, object], where: str) -> Scales:
    if fields.get("use_dora"):
        raise BadInput("a DoRA is no LoRA: its magnitudes are not merged here", where=where)
    patterns = fields.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise BadInput("alpha_pattern is no table", where=where)
    alpha = fields.get("lora_alpha")
    return Scales(
        alpha=None if alpha is None else _number(alpha, "lora_alpha", where),
        patterns={
            str(name): _number(value, f"alpha_pattern of {name}"[:80], where)
            for name, value in patterns.items()
        },
        rooted=bool(fields.get("use_rslora")),
    )


def _number(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{name} is no number", where=where)
    return float(value)
