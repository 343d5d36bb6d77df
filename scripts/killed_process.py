"""Commands in forks of this process that may be killed, and a look at what they left."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before any library is loaded: its threads would be lacking in the forks.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from fastwan.cli import main as command_line
from fastwan.manifest import MANIFEST
from fastwan.ownership import RECORD, prove
from fastwan.runtime.seal import is_sealed
from fastwan.staging import PREFIX

PATIENCE = 30.0
"""Seconds that processes of a killed command have to notice it."""

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "ctypes.dlsym"}
"""Audit events before a change; the last one comes before the exchange of two folders."""
_IMPORTED = (
    "fastwan.build",
    "fastwan.export.checkpoint.synthetic",
    "fastwan.quality.report",
    "fastwan.runtime.generate",
)

Tree = dict[str, str]


def preload() -> None:
    """Import what commands import, once and before the forks."""
    for name in _IMPORTED:
        importlib.import_module(name)


def tree(path: Path) -> Tree | None:
    """SHA-256 of every file below a path, or of the file itself; None where nothing is."""
    if path.is_file():
        return {"": hashlib.sha256(path.read_bytes()).hexdigest()}
    if not path.is_dir():
        return None
    files = sorted(each for each in path.rglob("*") if not each.is_dir())
    return {
        each.relative_to(path).as_posix(): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in files
    }


def content(path: Path) -> Tree | None:
    """`tree` without what differs from run to run: the times in a bundle's manifest."""
    found = tree(path)
    if found and MANIFEST in found:
        manifest = json.loads((path / MANIFEST).read_bytes())
        del manifest["build"], found[RECORD]
        found[MANIFEST] = json.dumps(manifest, sort_keys=True)
    return found


def is_whole(path: Path) -> bool:
    """Whether the tool itself takes an output for its own, whole."""
    if path.is_file():
        return is_sealed(path)
    proof = prove(path)
    listed = json.loads((path / RECORD).read_bytes())["files"]
    return proof.kind is not None and not proof.foreign and {*listed, RECORD} == {*proof.own}


def start(arguments: Sequence[str], folder: Path, log: Path, kill_at: int | None) -> int:
    """Fork a command, and return its process id.

    Args:
        kill_at: number of the change to the file system at which it kills itself.
    """
    process = os.fork()
    if process:
        return process
    os.setsid()
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    seen = 0

    def count(event: str, facts: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(facts[2], int) and facts[2] & 3
        if event in _CHANGES or writes:
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    code = 70
    try:
        command_line.main(args=list(arguments), prog_name="fastwan-export")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 70
    finally:
        (log.parent / "changes").write_text(str(seen))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def processes_of(session: int) -> Iterator[int]:
    """Process ids of a session."""
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                fields = (each / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                yield int(each.name)


def wait_for_session(session: int) -> bool:
    """Wait until nothing of a killed command runs; False, and they are killed, where it does."""
    until = time.monotonic() + PATIENCE
    while left := list(processes_of(session)):
        if time.monotonic() > until:
            for process in left:
                os.kill(process, signal.SIGKILL)
            return False
        time.sleep(0.01)
    return True


def leftovers(*folders: Path) -> set[Path]:
    """Folders that work was done in; there should be none once no command runs."""
    return {each for folder in folders for each in folder.rglob(f"{PREFIX}*")}


def phase(log: Path) -> str:
    """The last stage that a command told of."""
    stages = re.findall(r"^([a-z][a-z_ ]*[A-Za-z]): ", log.read_text(errors="replace"), re.M)
    return f"after {stages[-1]}" if stages else "at the start"
