"""The table of `compare_peers.py` as Markdown, and rows that are composed of two measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from peer_runs import FRAMES, HEIGHT, WIDTH, Row
from peer_systems import PUBLISHED_OURS, SYSTEMS, Published


def with_taehv(row: Row, decode: float) -> Row:
    """A row with TAEHV's own time in place of its decoder's; everything else is as measured."""
    assert row.text is not None
    return replace(
        row,
        decoder="taehv",
        decode=decode,
        copy=None,
        total=row.text + sum(row.each_step) + decode,
        total_is="the sum of its parts; TAEHV was timed alone",
    )


def ours(report: Mapping[str, Any], steps: int) -> Row:
    """The row of a report of ``fastwan-export bench --json``; its decoder is TAEHV."""
    bundle, measured = report["bundle"], report["measurement"]
    row = Row(
        system="fastwan-export", title=f"fastwan-export, {bundle['model']}", decoder="taehv",
        steps=steps, versions=bundle["versions"],
    )  # fmt: skip
    if measured is None:
        return replace(row, gap=f"no times: {report['note']}")
    times = {name: stage["median_ms"] for name, stage in measured["times"].items()}
    each = tuple(value for name, value in times.items() if name.startswith("step_"))
    return replace(
        row,
        steps=len(each),
        runs=measured["runs"],
        text=sum(times[name] for name in ("text", "text_kv") if name in times),
        each_step=each,
        steps_are="each",
        decode=times.get("decode"),
        total=times["total"],
        total_is=f"a whole video; {report['covers']}; frames are copied while others are decoded",
        gpu_states=tuple(measured["gpu_states"]),
    )


def published(row: Row) -> tuple[Published, ...]:
    """Published figures of a row's system with its decoder."""
    known = SYSTEMS[row.system].published if row.system in SYSTEMS else PUBLISHED_OURS
    return tuple(each for each in known if each.decoder == row.decoder)


def markdown(rows: Sequence[Row], machine: Mapping[str, Any], warmup: int) -> str:
    """One table of all rows, gaps by name, and where published figures are from."""
    lines = [
        f"# {WIDTH}x{HEIGHT}x{FRAMES} on {machine['gpu'] or 'no GPU'}",
        "",
        f"Medians in milliseconds (measured). Warm-up videos at this shape: {warmup}. Weights are "
        "resident while a stage is timed; one process a system; files outside of the times. "
        f"Driver {machine['driver'] or 'not known'}. Published figures were not measured here.",
        "",
        "| system | decoder | videos | text | steps | decode | copy | total | published |",
        "|---|---|---:|---:|---|---:|---:|---:|---|",
    ]
    notes: list[str] = []
    for row in rows:
        said = "; ".join(
            f"{each.seconds:g} s on an {each.gpu}, {each.covers}" for each in published(row)
        )
        lines.append("| " + " | ".join([*_cells(row), said or "-"]) + " |")
        if row.total_is:
            notes.append(f"- {row.title}, {row.decoder}: the total is {row.total_is}.")
    lines += ["", *notes, ""]
    for row in rows:
        for each in published(row):
            lines.append(f"- {each.seconds:g} s: {each.source}, read {each.date}.")
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Row) -> list[str]:
    if row.gap:
        return [row.title, row.decoder, f"gap: {row.gap.replace('|', '/')}", *["-"] * 5]
    steps = " + ".join(f"{each:,.1f}" for each in row.each_step)
    if row.steps_are != "each":
        steps = f"{row.steps} x {row.each_step[0]:,.1f} ({row.steps_are})"
    numbers = [
        "-" if each is None else f"{each:,.1f}"
        for each in (row.text, row.decode, row.copy, row.total)
    ]
    return [row.title, row.decoder, str(row.runs), numbers[0], steps, *numbers[1:]]
