"""Run one system in a process of its own and read what was timed in it."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peer_systems import TAEHV_DECODE, System

WIDTH, HEIGHT, FRAMES = 832, 480, 81
"""What the models were trained at; FastVideo's script makes no other shape."""
PROBE = Path(__file__).resolve().parent / "peer_probe"
PROMPT = "A red fox walks through fresh snow at dawn, its breath white in the cold air."
LIMIT_SECONDS = 4 * 3600
_PRINTED_TOTAL = re.compile(r"^\s*run \d+/\d+: (\d+\.\d+)s", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """A system with a decoder: medians over the measured videos, in milliseconds.

    Attributes:
        decoder: ``own`` or ``taehv``.
        each_step: one a denoising step; the mean of all where `steps_are` says so.
        copy: latents or frames to the host, where they are apart from the decoder.
        total: of a whole video; the sum of its parts where `total_is` says so.
        gap: why there are no numbers; empty where there are.
    """

    system: str
    title: str
    decoder: str
    steps: int
    gap: str = ""
    runs: int = 0
    text: float | None = None
    each_step: tuple[float, ...] = ()
    steps_are: str = ""
    decode: float | None = None
    copy: float | None = None
    total: float | None = None
    total_is: str = ""
    command: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    gpu_states: tuple[Mapping[str, Any] | None, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Fields of the row."""
        return asdict(self)


class Missing(Exception):
    """Why a system has no numbers, in one line."""


def filled(text: str, values: Mapping[str, Any]) -> Any:
    """`text` with its ``{name}`` replaced; a value of its own type where it is nothing else."""
    whole = re.fullmatch(r"\{(\w+)\}", text)
    if whole:
        return values[whole[1]]
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), text)


def installed(system: System, peer: Mapping[str, str] | None) -> Path:
    """Folder of an installed system.

    Raises:
        Missing: the caller names no folder, one without the program, or not all that it needs.
    """
    if peer is None:
        raise Missing("not installed: the peers file does not name it")
    if lacking := [name for name in ("folder", *system.needs) if name not in peer]:
        raise Missing(f"not installed: the peers file has no {', '.join(lacking)} for it")
    folder = Path(peer["folder"])
    if not (folder / system.program).is_file():
        raise Missing(f"not installed: no {system.program} in {folder}")
    return folder


Hooks = Mapping[str, tuple[str, ...]]
"""Functions to time, by stage."""


def run(
    command: Sequence[str], folder: Path, hooks: Hooks, settings: Mapping[str, str]
) -> tuple[list[dict[str, Any]], str]:
    """Run a program with timed functions; its events, oldest first, and what it printed.

    Raises:
        Missing: it failed, or took longer than `LIMIT_SECONDS`.
    """
    with tempfile.TemporaryDirectory() as place:
        events = Path(place, "events")
        paths = [str(PROBE), settings.get("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            **settings,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PEER_EVENTS": str(events),
            "PEER_HOOKS": json.dumps({stage: list(names) for stage, names in hooks.items()}),
        }
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True,
                timeout=LIMIT_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Missing(f"could not be run: {error}".splitlines()[0][:300]) from None
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing printed"]
            raise Missing(f"failed with exit status {done.returncode}: {lines[-1][:300]}")
        text = events.read_text(encoding="utf-8") if events.is_file() else ""
    found = [json.loads(line) for line in text.splitlines()]
    return sorted(found, key=lambda event: float(event["begin"])), done.stdout


def videos(events: Iterable[Mapping[str, Any]]) -> list[dict[str, list[float]]]:
    """Milliseconds by stage, a table a video; each begins with its text."""
    found: list[dict[str, list[float]]] = []
    for event in events:
        stage = str(event["stage"])
        # Prompt and negative prompt are two calls of one video.
        if stage == "text" and (not found or set(found[-1]) != {"text"}):
            found.append({})
        if found:
            found[-1].setdefault(stage, []).append(1e3 * float(event["seconds"]))
    return found


def measure(
    name: str, system: System, peer: Mapping[str, str] | None, decoder: str, warmup: int, runs: int
) -> Row:
    """One row of the table: `runs` videos after `warmup` at the measured shape.

    Raises:
        Missing: it is not installed, failed, or made fewer videos than were asked for.
    """
    folder = installed(system, peer)
    assert peer is not None
    more = system.own if decoder == "own" else system.taehv
    if more is None:
        raise Missing("it has no such decoder")
    python = peer.get("python", "python3")
    with tempfile.TemporaryDirectory() as place:
        values: dict[str, Any] = {
            **peer, "width": WIDTH, "height": HEIGHT, "frames": FRAMES, "steps": system.steps,
            "prompt": PROMPT, "runs": warmup + runs, "output": str(Path(place, "video.mp4")),
            "config": str(Path(place, "config.json")),
        }  # fmt: skip
        if system.config:
            config = {
                key: filled(value, values) if isinstance(value, str) else value
                for key, value in system.config.items()
            }
            Path(values["config"]).write_text(json.dumps(config), encoding="utf-8")
        arguments = [str(filled(each, values)) for each in (*system.arguments, *more)]
        repeat = [] if system.repeats else [str(PROBE / "repeat.py"), str(warmup + runs)]
        command = [python, *repeat, system.program, *arguments]
        further = system.own_hooks if decoder == "own" else system.taehv_hooks
        hooks = {**system.hooks, **further}
        events, printed = run(command, folder, hooks, system.environment)
    totals = [1e3 * float(each) for each in _PRINTED_TOTAL.findall(printed)]
    return Row(
        system=name,
        title=system.title,
        decoder=decoder,
        steps=system.steps,
        command=tuple(command),
        versions=versions(folder, python),
        **medians(videos(events), totals, system.steps, runs),
    )


def medians(
    made: Sequence[Mapping[str, Sequence[float]]], totals: Sequence[float], steps: int, runs: int
) -> dict[str, Any]:
    """Fields of a row from the last `runs` videos.

    Args:
        made: milliseconds by stage, a table a video.
        totals: times of whole videos that the program prints; they may be none.
        steps: that a video has to have.

    Raises:
        Missing: fewer videos, a stage that was not seen in one, or other steps.
    """
    last = made[len(made) - runs :] if len(made) >= runs else []
    if not last:
        raise Missing(f"{len(made)} videos were timed and {runs} asked for")
    for stage in ("text", "decode"):
        if any(stage not in video for video in last):
            raise Missing(f"the function timed as {stage} was not called: another version?")
    if all(len(video.get("step", ())) == steps for video in last):
        each = tuple(statistics.median(video["step"][i] for video in last) for i in range(steps))
        how, denoise = "each", [sum(video["step"]) for video in last]
    elif all("denoise" in video and "step" not in video for video in last):
        denoise = [sum(video["denoise"]) for video in last]
        each, how = (statistics.median(denoise) / steps,) * steps, "mean of the loop"
    else:
        raise Missing(f"a video has other than {steps} steps")
    parts = [
        sum(sum(video.get(stage, ())) for stage in ("text", "decode", "copy")) + loop
        for video, loop in zip(last, denoise, strict=True)
    ]
    whole = len(totals) >= runs
    copies = [sum(video["copy"]) for video in last if "copy" in video]
    return {
        "runs": runs,
        "text": statistics.median(sum(video["text"]) for video in last),
        "each_step": each,
        "steps_are": how,
        "decode": statistics.median(sum(video["decode"]) for video in last),
        "copy": statistics.median(copies) if len(copies) == runs else None,
        "total": statistics.median(totals[-runs:] if whole else parts),
        "total_is": "what the program prints" if whole else "the sum of its parts",
    }


def taehv_alone(peer: Mapping[str, str] | None, warmup: int, runs: int) -> float:
    """Milliseconds that TAEHV takes to decode a video, by the published package.

    Raises:
        Missing: it is not installed or failed.
    """
    if peer is None or "checkpoint" not in peer:
        raise Missing("TAEHV is not installed: the peers file has no taehv with a checkpoint")
    sizes = [str(each) for each in (WIDTH, HEIGHT, FRAMES, warmup + runs)]
    python = peer.get("python", "python3")
    command = [python, str(PROBE / "taehv_decode.py"), str(Path(peer["checkpoint"]).resolve())]
    events, _ = run([*command, *sizes], Path.cwd(), {"decode": TAEHV_DECODE}, {})
    if len(events) != warmup + runs:
        raise Missing(f"TAEHV decoded {len(events)} videos of {warmup + runs}")
    return statistics.median(1e3 * float(event["seconds"]) for event in events[-runs:])


def versions(folder: Path, python: str) -> dict[str, str]:
    """Commit of a folder, and packages of its Python; what cannot be asked is left out."""
    asked = {
        "commit": ["git", "-C", str(folder), "rev-parse", "HEAD"],
        "packages": [
            python, "-c", "import importlib.metadata as m; print(' '.join(sorted(d.name + '=='"
            " + d.version for d in m.distributions() if d.name in "
            "('torch', 'triton', 'fastvideo', 'fastvideo-kernel', 'lightx2v', 'sageattention', "
            "'flashinfer-python', 'taehv'))))",
        ],
    }  # fmt: skip
    found = {}
    for name, command in asked.items():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode and done.stdout.strip():
            found[name] = done.stdout.strip()
    return found
