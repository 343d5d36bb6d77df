"""The table of serve_gpus.py, as docs/serving.md has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_RUNS = ("direct", "one_by_one", "one_server", "all_servers")
_ROWS = {
    "median of a video, its file left out": ("total",),
    "until its first frame": ("first_frame",),
    "its text, noise, keys and values": ("text", "noise", "text_kv"),
    "a step, the decoder": ("step", "decode"),
    "between these": ("rest",),
    "its file": ("write",),
}


def table(compared: dict[str, Any]) -> Iterator[str]:
    """Lines of the table, and of what a server adds and a look after each step costs.

    Args:
        compared: by serve_gpus.py.
    """
    servers = len(compared["gpus"])
    kinds = f"{len(set(compared['gpus']))} GPUs" if len(set(compared["gpus"])) > 1 else "this GPU"
    yield (
        "| what | by a call | one server, one at a time | one server, "
        f"{compared['one_server']['videos']} at once | {servers} servers on {kinds} | kind |"
    )
    yield "|---|---|---|---|---|---|"
    rates = [f"{compared[run]['videos_a_second']:.1f}" for run in _RUNS]
    yield _row("videos a second, their files included", rates, "measured")
    for name, stages in _ROWS.items():
        found = [compared[run]["median_stage_ms"] for run in _RUNS]
        yield _row(
            name, [_ms([each[stage] for stage in stages if stage in each]) for each in found]
        )
    with_file = [_ms([compared[run]["median_ms_with_file"]]) for run in _RUNS[:2]]
    yield _row("from the request to the last byte of its file", [*with_file, "", ""])
    adds, known = compared["server_adds_ms"], compared["known_prompt"]
    yield f"The server adds {_ms([adds['to_a_video']])} to a video,"
    yield f"and {_ms([adds['to_a_video_and_its_file']])} to one and its file."
    for how, median in known.items():
        steps = _ms([median["step"]])
        yield f"With {how.replace('_', ' ')}: {_ms([median['total']])}, steps of {steps}."
    yield f"Contents are the same: {compared['contents_identical']}."


def _row(name: str, cells: list[str], kind: str = "emulated") -> str:
    return f"| {name} | {' | '.join(cells)} | {kind} |"


def _ms(values: list[float]) -> str:
    return f"{', '.join(f'{each:.1f}' for each in values)} ms" if values else ""
