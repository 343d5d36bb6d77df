"""Faults as rows of tables: what is planted where, and what a command has to make of it."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fastwan import content_cache

KINDS = "ABCDEFGHIJKLMNO"
"""Kinds of faults: A foreign outputs, B shared state, C parts of a checkpoint, D the hub, E numbers
that are not finite, F calls, G caches, H foreign formats, I text, J signals and damaged files, K
what is read back, L replacing, M bounds, N gates, O the environment."""

SECONDS = 120
"""A command that takes longer hangs, and ends the tests."""

Plant = Callable[[Path], None]


def nothing(folder: Path) -> None:
    """No fault."""


@dataclass(frozen=True)
class Fault:
    """A command in a folder where something is wrong.

    Attributes:
        kind: one of `KINDS`.
        command: its words; ``ck`` is a tiny checkpoint and ``b`` its bundle, copies of its own.
        code: documented exit code; 0 where the command gets over it.
        words: pattern of the one line that is said; empty where nothing is to be said.
        plant: makes the fault in the command's folder.
        twin: the same command without the fault, where the fault is in the command or `variables`.
        before: makes what the twin has, too.
        variables: of the environment.
        tells: pattern of what is printed all the same.
        apart: run it in a process of its own, through bash.
        check: looks at the folder afterwards.
    """

    name: str
    kind: str
    command: str
    code: int
    words: str
    plant: Plant = nothing
    twin: str = ""
    before: Plant = nothing
    variables: Mapping[str, str] = field(default_factory=dict)
    tells: str = ""
    apart: bool = False
    check: Plant = nothing

    @property
    def twin_command(self) -> str:
        return self.twin or self.command

    @property
    def differs(self) -> bool:
        """Whether the twin lacks something that the row has."""
        return bool(
            self.plant is not nothing or self.variables or (self.twin and self.twin != self.command)
        )


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Runner:
    """Runs commands of rows in folders of their own."""

    checkpoint: Path
    bundle: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def fill(self, folder: Path, command: str) -> None:
        """Copy what a command names."""
        words = command.replace("/", " ").split()
        for name, source in (("ck", self.checkpoint), ("b", self.bundle)):
            if name in words:
                shutil.copytree(source, folder / name, copy_function=shutil.copyfile)

    def __call__(self, folder: Path, row: Fault, command: str, cache: Path) -> Outcome:
        variables = {"FASTWAN_CACHE_DIR": str(cache), "FASTWAN_QUIET": "1", "HF_HUB_OFFLINE": "1"}
        if command == row.command:
            variables |= row.variables
        if row.apart:
            line = command.replace(
                "fastwan-export", f"{shlex.quote(sys.executable)} -m fastwan.cli"
            )
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=folder,
                env={**os.environ, **variables},
                capture_output=True,
                timeout=SECONDS,
            )
            return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
        with self.monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(content_cache, "_SAID", set())  # a warning is given once a process
            patch.chdir(folder)
            return self._here(shlex.split(command)[1:])

    def _here(self, arguments: list[str]) -> Outcome:
        from fastwan.cli import main

        self.capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code: Any = 0
            signal.alarm(SECONDS)
            try:
                main.main(args=arguments, prog_name="fastwan-export")
            except SystemExit as stop:
                code = stop.code or 0
            finally:
                signal.alarm(0)
        out, err = self.capsys.readouterr()
        return Outcome(code, out, err)


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a folder: what it is, and the hash of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"link {os.readlink(path)}"
        elif stat.S_ISREG(mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            what = f"{stat.S_IFMT(mode):o}"
        found[str(path.relative_to(folder))] = what
    return found


def cut(name: str, keep: int = 100) -> Plant:
    """A file that ends after some bytes."""
    return lambda folder: os.truncate(folder / name, keep)


def grow(name: str) -> Plant:
    """A file with a byte more."""

    def plant(folder: Path) -> None:
        with (folder / name).open("ab") as stream:
            stream.write(b"\0")

    return plant


def flip(name: str, at: int = -1) -> Plant:
    """A file of the same size with another byte."""

    def plant(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(content)

    return plant


def gone(name: str) -> Plant:
    """Nothing where a file or a folder should be."""

    def plant(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return plant


def pipe(name: str) -> Plant:
    """A FIFO that nobody writes to."""

    def plant(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return plant


def link(name: str, target: str = "") -> Plant:
    """A symbolic link: to `target`, or to the same content elsewhere."""

    def plant(folder: Path) -> None:
        path = folder / name
        if not target:
            path.rename(folder / "elsewhere")
        elif os.path.lexists(path):
            path.unlink()
        path.symlink_to(target or folder / "elsewhere")

    return plant


def directory(name: str) -> Plant:
    """A folder where a file should be."""

    def plant(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return plant


def put(name: str, content: bytes | str = b"mine") -> Plant:
    """A file of somebody, or other content in one that is there."""

    def plant(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return plant


def replace(name: str, old: str, new: str) -> Plant:
    """A text with one piece put in the place of another, once."""

    def plant(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return plant


def edit(name: str, place: str, value: object) -> Plant:
    """A JSON file with another value at a dotted place; the type ``dict`` removes what is there.

    A star stands for the first key.
    """

    def plant(folder: Path) -> None:
        tree = json.loads((folder / name).read_bytes())
        holder = tree
        *way, last = [int(each) if each.isdigit() else each for each in place.split(".")]
        for key in way:
            holder = holder[next(iter(holder)) if key == "*" else key]
        last = next(iter(holder)) if last == "*" else last
        if value is dict:
            del holder[last]
        else:
            holder[last] = value
        (folder / name).write_text(json.dumps(tree))

    return plant


def both(*plants: Plant) -> Plant:
    """Several, one after the other."""

    def plant(folder: Path) -> None:
        for each in plants:
            each(folder)

    return plant
