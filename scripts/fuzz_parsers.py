"""Feed damaged copies of valid inputs to every parser: only the project's own errors may escape.

python scripts/fuzz_parsers.py --checkpoint CHECKPOINT --bundle BUNDLE --inputs 1000000 --log FILE

Half of the inputs are damaged as bytes; of a JSON text the other half stays JSON, with a value of
another type, size or name somewhere in it. An entry of a cache may miss, but never give what was
not stored. An input that takes too long counts as a hang.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz_harnesses import Harness, harnesses

from fastwan import __version__
from fastwan.errors import FastWanError

SECONDS = 10
"""Beyond this one input counts as a hang."""

_WORDS = (
    b"NaN", b"-1", b"9" * 400, b"1e999", b"null", b"[]", b"{}", b'""', b"[" * 4000, b"\xff",
    b"\0", b"\xed\xa0\x80", b"\x7f\xff\xff\xff", b"\xff" * 8, b"../", b"\n",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308, "", "x", "../x",
    "NaN", "\x00", "a" * 5000, "\u202e", [], {}, [[]], {"": None}, [0] * 2000,
)  # fmt: skip


class Hang(Exception):
    """One input took longer than `SECONDS`."""


@dataclass
class Score:
    """What became of the inputs of one parser.

    Attributes:
        counts: taken, refused, uncaught and hung inputs.
        escaped: one input for each kind of exception that is not the project's.
    """

    counts: Counter[str] = field(default_factory=Counter)
    escaped: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a byte, a piece dropped, doubled or cut off, a word put in."""
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(data) + 1)
        end = min(len(data), begin + rng.randint(1, 16))
        kind = rng.randrange(5)
        if kind == 0:
            data = data[:begin] + rng.randbytes(1) + data[begin + 1 :]
        elif kind == 1:
            data = data[:begin] + data[end:]
        elif kind == 2:
            data = data[:end] + data[begin:]
        elif kind == 3:
            data = data[:begin] + rng.choice(_WORDS) + data[end:]
        elif rng.random() < 0.1:
            data = data[:begin]
    return data


def alter(text: bytes, rng: random.Random) -> bytes:
    """A JSON text with one to three values changed, dropped, renamed or put elsewhere."""
    root = {"": json.loads(text)}
    for _ in range(rng.randint(1, 3)):
        holder, key = _place(root, rng)
        kind = rng.randrange(6)
        if kind < 3:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
        elif kind == 3 and holder is not root:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict) and holder is not root:
            holder[rng.choice(("", "x", f"{key}_", "name"))] = holder.pop(key)
        else:
            other, where = _place(root, rng)
            holder[key] = copy.deepcopy(other[where])
    return json.dumps(root[""]).encode()


def _place(root: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container somewhere in a JSON value, and a key or an index of it."""
    holder, key = root, ""
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    return holder, key


def inputs_of(harness: Harness, rng: random.Random) -> Iterator[bytes]:
    """Damaged copies of a harness's valid input, without end."""
    is_json = harness.valid.startswith(b"{")
    while True:
        if is_json and rng.random() < 0.5:
            yield alter(harness.valid, rng)
        else:
            yield damage(harness.valid, rng)


def fuzz(harness: Harness, inputs: int, seed: int, seconds: float = float("inf")) -> Score:
    """Run one parser on so many inputs, or until the time is over.

    Raises:
        FastWanError: the valid input is refused, so that damaged copies of it would show nothing.
    """

    def late(number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {SECONDS} s")

    harness.parse(harness.valid)
    score, began = Score(), time.monotonic()
    stream = inputs_of(harness, random.Random(seed))
    before = signal.signal(signal.SIGALRM, late)
    try:
        for _ in range(inputs):
            data = next(stream)
            signal.alarm(SECONDS)
            try:
                harness.parse(data)
                outcome = "taken"
            except FastWanError as error:
                outcome = "refused" if "\n" not in str(error) else "uncaught"
            except Exception as error:
                outcome = "hung" if isinstance(error, Hang) else "uncaught"
                score.escaped.setdefault(f"{type(error).__name__}: {error}"[:120], data)
            finally:
                signal.alarm(0)
            score.counts[outcome] += 1
            if time.monotonic() - began > seconds:
                break
    finally:
        signal.signal(signal.SIGALRM, before)
    score.seconds = time.monotonic() - began
    return score


def _one(task: tuple[str, argparse.Namespace]) -> tuple[str, Score]:
    """Fuzz one parser in a process of its own."""
    name, given = task
    with tempfile.TemporaryDirectory() as work:
        harness = harnesses(given.checkpoint, given.bundle, Path(work))[name]
        return name, fuzz(harness, given.inputs, given.seed, given.seconds)


def main() -> int:
    """Run the parsers and print a table; 1 if anything but the project's errors escaped."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--checkpoint", type=Path, required=True)
    options.add_argument("--bundle", type=Path, required=True)
    options.add_argument("--inputs", type=int, default=1000)
    options.add_argument("--seconds", type=float, default=float("inf"), help="most for one parser")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", help="name of one parser")
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--log", type=Path, help="JSON file for the counts")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as work:
        names = list(harnesses(given.checkpoint, given.bundle, Path(work)))
    tasks = [(name, given) for name in names if given.only in (None, name)]
    rows: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(given.processes, maxtasksperchild=1) as pool:
        for name, score in pool.imap_unordered(_one, tasks, chunksize=1):
            counts = {key: score.counts[key] for key in ("taken", "refused", "uncaught", "hung")}
            rows[name] = {"inputs": score.counts.total()} | counts
            rows[name] |= {"seconds": round(score.seconds, 1), "escaped": list(score.escaped)}
            told = "  ".join(f"{count:>9,} {key}" for key, count in counts.items())
            print(f"{name:<20} {told}  {score.seconds:,.0f} s", flush=True)
            for error, data in score.escaped.items():
                print(f"    {error}\n        {data[:300]!r}")
    log = {
        "what": "damaged copies of a valid input of each parser, and what became of them",
        "version": __version__,
        "python": platform.python_version(),
        "seed": given.seed,
        "inputs": sum(row["inputs"] for row in rows.values()),
        "uncaught": sum(row["uncaught"] for row in rows.values()),
        "hung": sum(row["hung"] for row in rows.values()),
        "parsers": dict(sorted(rows.items())),
    }
    if given.log:
        given.log.write_text(json.dumps(log, indent=1) + "\n")
    return int(bool(log["uncaught"] or log["hung"]))


if __name__ == "__main__":
    sys.exit(main())
