"""What `verify` says: checks with a value and a limit, and whether all of them passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import computed_field, field_validator

from fastwan.errors import EnvironmentLacks, FastWanError
from fastwan.schema import BundleFacts, Emulated, Label, Record, Report
from fastwan.screen import Lines, Rows

if TYPE_CHECKING:
    from rich.console import RenderableType


class Check(Record):
    """One figure held against its limit."""

    name: str
    metric: str
    """What `value` counts or measures."""
    value: float | None
    """Null where the check could not be run or gave no finite figure; then it has failed."""
    limit: float | None
    """Largest good value; null where it is not finite, and then nothing passes."""
    label: Label = "measured"
    """``measured`` on the files or on the CPU; ``emulated`` where a CPU stands in for the FP4
    arithmetic of the GPU."""
    note: str = ""
    """At which shape, against what, or why it could not be run."""

    @field_validator("value", "limit")
    @classmethod
    def _finite(cls, figure: float | None) -> float | None:
        return figure if figure is not None and math.isfinite(figure) else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether there is a value, and it is within 0 and the limit."""
        return self.value is not None and self.limit is not None and 0 <= self.value <= self.limit


class BlockFigure(Record):
    """One block of the transformer in the first step, on the hidden states it was given there."""

    block: int
    to_module: Emulated[float]
    """Relative L2 difference of its hidden states to the torch module's, quantised."""
    fp4: Emulated[float]
    """What FP4 changes: the difference to the module without activation quantisers and with exact
    attention, over the change that the block makes (L2)."""


class StepFigure(Record):
    """One denoising step, for the latents it was given."""

    step: int
    timestep: int
    to_module: Emulated[float]
    """Relative L2 difference of the velocity to the torch module's, quantised."""
    fp4: Emulated[float]
    """The same to the module without activation quantisers and with exact attention."""


class FP4Comparison(Record):
    """What FP4 activations and FP4 attention make of a video, over the bundle's own weights."""

    blocks: tuple[BlockFigure, ...]
    steps: tuple[StepFigure, ...]
    psnr: Emulated[float] | None
    """Of the frames to those without them, each from the same noise its own way, in dB; null where
    they are equal or the bundle has no decoder."""
    ssim: Emulated[float] | None
    """Likewise, structural similarity as of Wang et al. 2004."""

    @field_validator("psnr", "ssim")
    @classmethod
    def _finite(cls, figure: float | None) -> float | None:
        return figure if figure is not None and math.isfinite(figure) else None


class LoraBlock(Record):
    """What LoRA files change in one block, and what quantising loses of it."""

    block: int
    linears: int
    """That they change."""
    change: Emulated[float]
    """Relative L2 norm of the difference, over the products of drawn rows with those linears."""
    error_without: Emulated[float]
    """Relative L2 error of the products with the quantised weights as the checkpoint has them."""
    error_with: Emulated[float]
    """Likewise with the merged weights."""


class VerifyReport(Report):
    """Outcome of all checks of a bundle."""

    kind: Literal["verify"] = "verify"
    schema_version: Literal[2] = 2
    bundle: BundleFacts
    checks: tuple[Check, ...]
    fp4: FP4Comparison | None = None
    """Of ``--device emulated``."""
    lora: tuple[LoraBlock, ...] = ()
    """Of ``--checkpoint`` with ``--lora``."""
    unchecked: tuple[str, ...] = ()
    """What the device cannot show."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether there are checks and every one of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Planned:
    """Checks that one function makes, known by name before it runs."""

    names: tuple[str, ...]
    run: Callable[[], Sequence[Check]]


def run_planned(planned: Planned) -> tuple[Check, ...]:
    """Run a function; what it does not deliver, because it failed or left it out, is a failure.

    A graph that was tampered with makes parsers and runtimes raise anything, so every exception
    but a missing package fails the checks and its text becomes their note.

    Raises:
        EnvironmentLacks: a package is missing, so that nothing can be said of the bundle.
    """
    try:
        made: dict[str, Check] = {}
        for check in planned.run():
            # Of two results of one name the one that failed counts.
            if check.name not in made or made[check.name].passed:
                made[check.name] = check
        note = "no result"
    except EnvironmentLacks:
        raise
    except FastWanError as error:
        made, note = {}, str(error)
    except Exception as error:
        text = " ".join(str(error).split())
        made, note = {}, f"{type(error).__name__}: {text}"[:400]
    return tuple(made.get(name) or not_run(name, note) for name in planned.names)


def not_run(name: str, note: str) -> Check:
    """A check that failed because it could not be run."""
    return Check(name=name, metric="not run", value=None, limit=0.0, note=note)


def render(report: VerifyReport) -> RenderableType:
    """The checks as a table or as a line each, with the verdict under them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table, rows = Table(), []
    for title in ("check", "value", "limit", "", "what", "note"):
        table.add_column(title, justify="right" if title in ("value", "limit") else "left")
    for check in report.checks:
        value, limit = _shown(check.value), _shown(check.limit)
        style = "" if check.passed else "bold red"
        outcome = "passed" if check.passed else "FAILED"
        texts = (check.name, value, limit, outcome, check.metric, check.note)
        # Notes hold names from the bundle, which are no markup.
        table.add_row(*(Text(text) for text in texts), style=style)
        note = f" ({check.note})" if check.note else ""
        what = f"{outcome} {check.name}: {value} of at most {limit}, {check.metric}{note}"
        rows.append(Text(what, style=style))
    failed = [check.name for check in report.checks if not check.passed]
    verdict = f"failed: {', '.join(failed)}" if failed else f"{len(report.checks)} checks passed"
    lines = [verdict if report.checks else "no checks"]
    if report.fp4 is not None:
        lines.append(_fp4_line(report.fp4))
    lines += map(_lora_line, report.lora)
    lines += [f"not checked: {each}" for each in report.unchecked]
    return Group(Rows(table, rows), Lines(*lines))


def _fp4_line(fp4: FP4Comparison) -> str:
    """What FP4 makes of the video in a line."""
    blocks = [figure.fp4 for figure in fp4.blocks]
    parts = [f"steps {', '.join(f'{figure.fp4:.2g}' for figure in fp4.steps)}"]
    if blocks:
        parts.append(f"blocks {min(blocks):.2g} to {max(blocks):.2g}")
    if fp4.psnr is not None and fp4.ssim is not None:
        parts.append(f"frames {fp4.psnr:.1f} dB, SSIM {fp4.ssim:.3f}")
    return f"FP4 against bf16 and exact attention (emulated): {'; '.join(parts)}"


def _lora_line(block: LoraBlock) -> str:
    """What LoRA files make of a block in a line."""
    return (
        f"LoRA in block {block.block} (emulated): {block.linears} linears changed by "
        f"{block.change:.2g}; error of the quantised weights {block.error_without:.4g} without it, "
        f"{block.error_with:.4g} with it"
    )


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.4g}"
