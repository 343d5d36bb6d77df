"""What ``generate`` prints, as lines for a terminal or a file."""

from __future__ import annotations

import statistics

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
    return [f"  {name:<11} {_ms(seconds):>10} ms (measured)" for name, seconds in stages.items()]


def _table(video: MadeVideo) -> list[str]:
    """Stages of the measured runs, and of the warm-ups beside them, which do not count.

    Columns are as wide as what is in them, so that a short video's fit 50 columns.
    """
    runs = f"{len(video.runs)} runs" if len(video.runs) > 1 else "1 run"
    rows = [("stage", "min", "median", "p95", "spread", "warm-up")]
    for name in video.runs[-1]:
        values = [stages[name] for stages in video.runs if name in stages]
        middle = statistics.median(values)
        spread = f"{(max(values) - min(values)) / middle:.1%}" if middle else "-"
        before = [stages[name] for stages in video.warmups if name in stages]
        # Of the warm-ups the slowest, which mostly is their first.
        warm = _ms(max(before)) if before else "-"
        figures = (_ms(min(values)), _ms(middle), _ms(nearest_rank(values, 95)))
        rows.append((name, *figures, spread, warm))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [" ".join([name.ljust(first), *map(str.rjust, cells, others)]) for name, *cells in rows]
    return [
        f"  milliseconds (measured) of {runs},",
        "  and of warm-ups, which do not count",
        *(f"  {line}" for line in lines),
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"
