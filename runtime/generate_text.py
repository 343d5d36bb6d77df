"""What ``generate`` prints, as lines for a terminal or a file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fastwan.runtime.report import GenerateReport, MadeVideo
from fastwan.runtime.timings import nearest_rank


def render(report: GenerateReport) -> str:
    """Where each video lies, and what its stages took, within 72 columns but for paths."""
    return "\n".join(line for video in report.videos for line in _lines(video, report.device))


def _lines(video: MadeVideo, device: str) -> list[str]:
    size = f"{video.frame_count} frames of {video.width}x{video.height}, seed {video.seed}"
    lines = []
    if video.video is not None:
        lines.append(f"video: {video.video} ({size}, {device})")
    if video.frames_dir is not None:
        lines.append(f"frames: {video.frames_dir} ({size}, {device})")
        lines.append(f"first frame: {video.first_frame}")
    once = len(video.runs) == 1 and not video.warmups
    return [*lines, *(_once(video.runs[0]) if once else _table(video))]


def _once(stages: dict[str, float]) -> list[str]:
    return [f"  {name:<11} {_ms(seconds)} ms (measured)" for name, seconds in stages.items()]


def _table(video: MadeVideo) -> list[str]:
    """Stages of the measured runs, and of the warm-ups beside them, which do not count."""
    runs = f"{len(video.runs)} runs" if len(video.runs) > 1 else "1 run"
    lines = [
        f"  milliseconds (measured) of {runs}, and of warm-ups, which do not count",
        f"  {'stage':<11} {'min':>10} {'median':>10} {'p95':>10} {'spread':>7} {'warm-up':>10}",
    ]
    for name in video.runs[-1]:
        values = [stages[name] for stages in video.runs if name in stages]
        middle = statistics.median(values)
        spread = f"{(max(values) - min(values)) / middle:.1%}" if middle else "-"
        before = [stages[name] for stages in video.warmups if name in stages]
        lines.append(
            f"  {name:<11} {_ms(min(values))} {_ms(middle)} {_ms(nearest_rank(values, 95))} "
            f"{spread:>7} {_warm(before)}"
        )
    return lines


def _warm(values: Sequence[float]) -> str:
    """The slowest of the warm-ups, as most of them are their first."""
    return _ms(max(values)) if values else f"{'-':>10}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:>10,.2f}"
