"""The report of ``plan`` as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from fastwan.quality.fit import RESERVED_BYTES
from fastwan.quality.plan_report import PlannedShape, PlannedVideo, PlanReport
from fastwan.screen import Grid, Lines
from fastwan.shapes import shape_text


class PlanText:
    """A report: one target in detail, or several side by side, as many as a line has room for.

    What does not fit, and why, stands below.
    """

    def __init__(self, report: PlanReport) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        report = self._report
        yield Text(_title(report), style="bold")
        if len(report.targets) == 1:
            yield _one_target(report, next(iter(report.targets)))
        else:
            yield from _many_targets(report, console, options)
        yield Lines(*_below(report))


def _title(report: PlanReport) -> str:
    single = f" for {next(iter(report.targets))}" if len(report.targets) == 1 else ""
    guided = ", guided" if report.guided else ""
    return (
        f"{report.model}{single}, attention {report.attention}, fusion {report.fusion}, "
        f"{report.steps} steps of {report.sampler}{guided} (all predicted)"
    )


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    return Grid(columns, rows, right=range(1, len(columns)), box=SIMPLE)


def _one_target(report: PlanReport, target: str) -> Grid:
    rows = []
    for row in report.rows:
        video = row.targets[target]
        times = (video.step_ms, video.decode_ms, video.video_ms, video.sober_video_ms)
        cells = (
            shape_text(row.shape),
            f"{row.tokens:,}",
            *("-" if each is None else f"{each:,.0f}" for each in times),
            *_memory(row),
            {True: "yes", False: "no", None: "-"}[video.fits],
        )
        rows.append(cells)
    columns = (
        "shape", "tokens", "step\nms", "decode\nms", "video\nms", "attained\nms", "video\nGB",
        "needed\nGB", "fits",
    )  # fmt: skip
    return _grid(columns, rows)


def _many_targets(report: PlanReport, console: Console, options: ConsoleOptions) -> Iterator[Grid]:
    """As few tables as the width allows; lines of all targets where there is no room for one."""
    names = list(report.targets)
    if not all(_side_by_side(report, [name]).fits(console, options) for name in names):
        yield _side_by_side(report, names)
        return
    shown: list[str] = []
    for name in names:
        if shown and not _side_by_side(report, [*shown, name]).fits(console, options):
            yield _side_by_side(report, shown)
            shown = []
        shown.append(name)
    yield _side_by_side(report, shown)


def _side_by_side(report: PlanReport, targets: Sequence[str]) -> Grid:
    rows = []
    for row in report.rows:
        cells = (_seconds(row.targets[name]) for name in targets)
        rows.append((shape_text(row.shape), *_memory(row), *cells))
    return _grid(("shape", "video\nGB", "needed\nGB", *(f"{name}\ns" for name in targets)), rows)


def _memory(row: PlannedShape) -> Iterator[str]:
    yield from (f"{each / 1e9:,.2f}" for each in (row.device_bytes.total, row.needed_bytes))


def _seconds(video: PlannedVideo) -> str:
    """At peak rates and at attained ones; a star where it does not fit."""
    known = [each for each in (video.video_ms, video.sober_video_ms) if each is not None]
    times = "-".join(f"{ms / 1e3:.{_digits(ms / 1e3)}f}" for ms in known)
    return f"{times or '?'}{'*' if video.fits is False else ''}"


def _digits(seconds: float) -> int:
    return 3 if seconds < 0.1 else 2 if seconds < 10 else 1 if seconds < 100 else 0


def _below(report: PlanReport) -> Iterator[str]:
    """What the table leaves out."""
    if len(report.targets) > 1:
        yield (
            "seconds of a video at peak rates, and at attained ones where any are known; ?: a rate "
            "is not known; *: does not fit"
        )
    for name in report.targets:
        for row in report.rows:
            if why := row.targets[name].why:
                yield f"{shape_text(row.shape)}: {why}"
    yield _text_encoder(report)
    built = f"{shape_text(report.built_shape)} for {report.built_for}"
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"from the kernels of a build of {built} ({versions})"


def _text_encoder(report: PlanReport) -> str:
    text = report.text_encoder
    if text is None:
        return f"without text encoder; needed counts {RESERVED_BYTES / 1e9:.1f} GB beside a video"
    times = [each.text_encoder_ms for each in report.targets.values()]
    known = sorted(each for each in times if each is not None)
    took = f" and {known[0]:,.0f} to {known[-1]:,.0f} ms a prompt" if known else ""
    if known and len(set(known)) == 1:
        took = f" and {known[0]:,.0f} ms a prompt"
    return (
        f"needed counts the text encoder in {text.recipe}, {text.bytes / 1e9:,.1f} GB, which takes "
        f"as much at every shape{took} (predicted), and {RESERVED_BYTES / 1e9:.1f} GB of context "
        "and compiled kernels"
    )
