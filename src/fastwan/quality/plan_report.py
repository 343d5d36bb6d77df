"""What ``plan`` prints: time and memory of a model at several shapes, as models and as tables."""

from __future__ import annotations

from typing import Literal

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastwan.config import VideoShape
from fastwan.runtime.recording.memory_plan import DeviceBytes
from fastwan.schema import FigureReport, Predicted, Record


class PlannedShape(Record):
    """A video of one shape; of a prompt whose embeddings are there."""

    shape: VideoShape
    tokens: int
    """Of the transformer; the patch grid's."""
    padded_tokens: int
    """Rows that its kernels compute: whole tiles of 128."""
    kernels: Predicted[int]
    """Of the whole video."""
    bytes_moved: Predicted[int]
    flops: Predicted[int]
    step_ms: Predicted[float | None]
    """Mean over the denoising steps; null where no rates of the target are known."""
    decode_ms: Predicted[float | None]
    """All latent frames, with the copies of their frames."""
    video_ms: Predicted[float | None]
    """Every step, decoder and copies; not the text encoder."""
    sober_step_ms: Predicted[float | None]
    """At rates that kernels have attained, in place of peaks; null where none are known."""
    sober_video_ms: Predicted[float | None]
    device_bytes: Predicted[DeviceBytes]
    """Without the text encoder."""
    needed_bytes: Predicted[int]
    """In all: with the text encoder, and what a context and compiled kernels take."""
    fits: Predicted[bool | None]
    """Null where the memory of the target is not known."""
    why: str
    """What takes the memory, where it does not fit."""


class PlannedText(Record):
    """The text encoder, which no shape changes; UMT5-XXL with a prompt of the usual length."""

    recipe: str
    bytes: Predicted[int]
    """Of its engines."""
    predicted_ms: Predicted[float | None]
    """Its weights, read once."""


class PlanReport(FigureReport):
    """Time and memory by shape, from records of a build at one of them; nothing was built."""

    kind: Literal["plan"] = "plan"
    schema_version: Literal[1] = 1
    model: str
    recipe: str
    target: str
    attention: str
    fusion: str
    sampler: str
    steps: int
    built_for: str
    """Target of the build that the records are of; its kernels stand for those of `target`."""
    built_shape: VideoShape
    versions: dict[str, str]
    """Of the backend that built them."""
    rates: str | None
    """Date and source of the peaks."""
    sober_rates: str | None
    """Likewise of the attained rates."""
    text_encoder: PlannedText | None
    """Null where it was left out."""
    rows: tuple[PlannedShape, ...]


_COLUMNS = (
    "shape", "tokens", "step\nms", "decode\nms", "video\nms", "attained\nms", "video\nGB",
    "needed\nGB", "fits",
)  # fmt: skip
"""A step, the decoder and a video at peak rates, a video at attained ones, memory of a video, and
with all beside it."""


def shape_name(shape: VideoShape) -> str:
    """Width, height and frames as people write them."""
    return f"{shape.width}x{shape.height}x{shape.num_frames}"


def render(report: PlanReport) -> RenderableType:
    """The table of a report, and what does not fit below it."""
    table = Table(
        title=(
            f"{report.model} for {report.target}, attention {report.attention}, fusion "
            f"{report.fusion}, {report.steps} steps of {report.sampler} (all predicted)"
        ),
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "shape" else "right", no_wrap=True)
    for row in report.rows:
        times = (row.step_ms, row.decode_ms, row.video_ms, row.sober_video_ms)
        table.add_row(
            shape_name(row.shape),
            f"{row.tokens:,}",
            *("-" if each is None else f"{each:,.0f}" for each in times),
            *(f"{each / 1e9:,.2f}" for each in (row.device_bytes.total, row.needed_bytes)),
            {True: "yes", False: "no", None: "-"}[row.fits],
        )
    parts: list[RenderableType] = [table, Text(_text_encoder(report))]
    parts += [Text(f"{shape_name(row.shape)}: {row.why}") for row in report.rows if row.why]
    built = f"{shape_name(report.built_shape)} for {report.built_for}"
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts.append(Text(f"from the kernels of a build of {built} ({versions})"))
    return Group(*parts)


def _text_encoder(report: PlanReport) -> str:
    text = report.text_encoder
    if text is None:
        return "without text encoder"
    time = "" if text.predicted_ms is None else f" and {text.predicted_ms:,.0f} ms a prompt"
    return (
        f"needed counts the text encoder in {text.recipe}, {text.bytes / 1e9:,.1f} GB, which takes "
        f"as much at every shape{time} (predicted), and 1.1 GB of context and compiled kernels"
    )
