"""Kill commands at random points and see what became of their outputs.

python scripts/kill_runs.py --kills 1000 --seed 0 --log benchmarks/kill_runs.json

Each of ``make-checkpoint``, ``generate`` and ``build-engine`` replaces an output that is there
already, and is ended by SIGKILL: half of the times after a random part of its usual time, half of
the times at a random one of its changes to the file system. The output then has to be the old one
or the new one, whole, by the hashes of all its files. Now and then a run is left to end: it has to
succeed, and nothing that the killed ones left may be there afterwards.

Commands run in forks of this process, so that a run takes a second and not three.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killed_process import (
    Tree,
    content,
    is_whole,
    leftovers,
    phase,
    preload,
    start,
    tree,
    wait_for_session,
)

from fastwan import __version__

LET_END = 10
"""One run of so many is not killed."""

COLD = 25
"""One run of so many begins with an empty cache."""


@dataclass
class Command:
    """A command with two variants, whose outputs differ.

    Attributes:
        variants: arguments of either.
        outputs: what they write, relative to `folder`, where they run.
        seconds: usual time of a run.
        changes: usual number of changes to the file system.
        results: content of the outputs after an undisturbed run, by variant.
    """

    name: str
    folder: Path
    variants: tuple[list[str], list[str]]
    outputs: tuple[str, ...]
    seconds: float = 0.0
    changes: int = 0
    results: list[list[Tree | None]] = field(default_factory=list)


class Trial:
    """Runs commands, kills them, and keeps the score.

    Attributes:
        counts: runs by (command, kind of point, phase, outcome).
        faults: what went wrong, in words.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.random = random.Random(seed)
        self.counts: Counter[tuple[str, str, str, str]] = Counter()
        self.faults: list[str] = []
        self.left = self.cleaned = 0
        (work / "tmp").mkdir()
        os.environ |= {"TMPDIR": str(work / "tmp"), "FASTWAN_CACHE_DIR": str(work / "cache")}
        tempfile.tempdir = None
        preload()
        checkpoints = work / "checkpoints"
        checkpoints.mkdir()
        for name in "ab":
            self.undisturbed(["make-checkpoint", name, "--size", "tiny"], checkpoints, name)
        build = ["build-engine", "--checkpoint", "../checkpoints/a", "-o", "bundle"]
        self.undisturbed(build, checkpoints, "the bundle to play")
        self.commands = self._commands()
        for command in self.commands:
            command.folder.mkdir()
            for arguments in command.variants:
                self.undisturbed(arguments, command.folder, command.name)  # fills the cache
                started = time.monotonic()
                self.undisturbed(arguments, command.folder, command.name)
                command.seconds = time.monotonic() - started
                command.changes = int((work / "changes").read_text())
                paths = [command.folder / each for each in command.outputs]
                command.results.append([content(each) for each in paths])
            if command.results[0] == command.results[1]:
                raise SystemExit(f"both variants of {command.name} make the same")

    def _commands(self) -> list[Command]:
        make = ["make-checkpoint", "checkpoint", "--size", "tiny", "--seed"]
        bundle = ["generate", "../checkpoints/bundle", "a red fox", "--device", "cpu"]
        play = [*bundle, "--prompt-cache", "prompts", "-o", "video.mp4", "--frames", "frames"]
        build = ["build-engine", "--checkpoint", "../checkpoints/a", "-o", "bundle", "--components"]
        return [
            Command(name, self.work / name, variants, outputs)
            for name, variants, outputs in (
                ("make-checkpoint", ([*make, "1"], [*make, "2"]), ("checkpoint",)),
                ("generate", ([*play, "--seed", "1"], [*play, "--seed", "2"]),
                 ("video.mp4", "frames")),
                ("build-engine", ([*build, "dit"], [*build, "dit,text_encoder"]), ("bundle",)),
            )
        ]  # fmt: skip

    def undisturbed(self, arguments: Sequence[str], folder: Path, what: str) -> None:
        """Run a command to its end.

        Raises:
            SystemExit: it failed.
        """
        log = self.work / "log"
        _, status = os.waitpid(start(arguments, folder, log, None), 0)
        if status:
            raise SystemExit(f"{what}: status {status}: {log.read_text(errors='replace')}")

    def kill_one(self, command: Command) -> bool:
        """Kill one run of a command, and see what its outputs are; False where it was quicker."""
        paths = [command.folder / each for each in command.outputs]
        before, is_now = [tree(each) for each in paths], [content(each) for each in paths]
        variant = int(is_now == command.results[0])
        if self.random.randrange(COLD) == 0:
            shutil.rmtree(self.work / "cache", ignore_errors=True)
        by_time = self.random.random() < 0.5
        moment = self.random.random()
        kill_at = None if by_time else 1 + int(moment * command.changes)
        log = self.work / "log"
        process = start(command.variants[variant], command.folder, log, kill_at)
        if by_time:
            time.sleep(moment * command.seconds)
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        killed = os.WIFSIGNALED(status)
        if not wait_for_session(process):
            self.faults.append(f"{command.name}: processes went on after a kill {phase(log)}")
        states = [
            self._state(path, old, new)
            for path, old, new in zip(paths, before, command.results[variant], strict=True)
        ]
        outcome = states[0] if len(set(states)) == 1 else " and ".join(states)
        if not killed:
            outcome = f"ended before, {outcome}"
        where = f"{command.name}, {'time' if by_time else 'change'} {moment:.4f}, {phase(log)}"
        if "torn" in outcome or (not killed and status):
            self.faults.append(f"{where}: {outcome}, status {status}")
        kind = "at a time" if by_time else "at a change"
        self.counts[command.name, kind, phase(log), outcome] += 1
        return killed

    @staticmethod
    def _state(path: Path, old: Tree | None, new: Tree | None) -> str:
        if tree(path) == old:
            return "old"
        return "new" if content(path) == new and is_whole(path) else "torn"

    def let_end(self, command: Command) -> None:
        """Run a command to its end: it has to remove what killed runs left."""
        places = (command.folder, self.work / "cache", self.work / "tmp")
        found = leftovers(*places)
        self.left += len(found)
        variant = self.random.randrange(2)
        self.undisturbed(command.variants[variant], command.folder, command.name)
        still = leftovers(*places)
        self.cleaned += len(found - still)
        self.faults += [f"{command.name} left {each.relative_to(self.work)}" for each in still]
        paths = [command.folder / each for each in command.outputs]
        if [content(each) for each in paths] != command.results[variant]:
            self.faults.append(f"{command.name}: an undisturbed run made something else")

    def run(self, kills: int) -> int:
        """Kill so many runs, the commands in turn; the number that were."""
        done = 0
        for command in self.commands:
            share = kills // len(self.commands) + (command is self.commands[-1]) * (
                kills % len(self.commands)
            )
            killed = 0
            while killed < share:
                killed += self.kill_one(command)
                if killed % LET_END == 0:
                    self.let_end(command)
            self.let_end(command)
            done += killed
            print(f"{command.name}: {killed} kills, {len(self.faults)} faults", flush=True)
        return done


def report(trial: Trial, kills: int, seed: int, seconds: float) -> dict[str, Any]:
    """What is written to the log."""
    table: dict[str, Any] = {}
    for (name, kind, where, outcome), count in sorted(trial.counts.items()):
        table.setdefault(name, {}).setdefault(kind, {}).setdefault(where, {})[outcome] = count
    return {
        "what": "runs of each command that were ended by SIGKILL, and what their outputs were",
        "version": __version__,
        "python": platform.python_version(),
        "seed": seed,
        "kills": kills,
        "torn": sum(n for key, n in trial.counts.items() if "torn" in key[-1]),
        "leftovers": {"found": trial.left, "removed by the next whole run": trial.cleaned},
        "faults": trial.faults,
        "seconds": round(seconds, 1),
        "runs": table,
    }


def main() -> int:
    """Kill, tell, and write the log; 1 if anything was torn or left."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kills", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--log", type=Path, help="JSON file for the counts")
    given = options.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        trial = Trial(Path(work), given.seed)
        kills = trial.run(given.kills)
        told = report(trial, kills, given.seed, time.monotonic() - started)
    text = json.dumps(told, indent=1) + "\n"
    if given.log:
        given.log.write_text(text)
    print(text, end="")
    return int(bool(trial.faults))


if __name__ == "__main__":
    sys.exit(main())
