"""A server in a process of its own, and a client of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

WAIT = 60.0
"""Seconds after which a test gives up."""

_URL = re.compile(r"on (http://\S+),")


@dataclass
class ServerProcess:
    """A process that says on stderr where it listens.

    Attributes:
        lines: what it has written to stderr so far.
    """

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens; waits until it says so."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            for line in list(self.lines):
                if match := _URL.search(line):
                    return match[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no server, exit code {self.process.poll()}: {self.lines}")

    def client(self) -> httpx2.Client:
        """A client of it."""
        return httpx2.Client(base_url=self.url, timeout=WAIT)

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)


def _heed_interrupts() -> None:
    """A shell has its background jobs ignore SIGINT, and a server keeps to that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(*words: str) -> Iterator[ServerProcess]:
    """``python WORDS`` as a server, which is killed at the end of the `with` body."""
    support = str(Path(__file__).resolve().parents[1])
    paths = [support, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    process = subprocess.Popen(
        [sys.executable, *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        preexec_fn=_heed_interrupts,
    )
    server = ServerProcess(process)
    reader = threading.Thread(target=server.read, daemon=True)
    reader.start()
    try:
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def until_done(client: httpx2.Client, job_id: str) -> dict[str, object]:
    """A job as soon as it is neither queued nor in progress."""
    end = time.monotonic() + WAIT
    video: dict[str, object] = {}
    while time.monotonic() < end:
        video = client.get(f"/v1/videos/{job_id}").json()
        if video["status"] not in ("queued", "in_progress"):
            return video
        time.sleep(0.01)
    raise AssertionError(f"{job_id} is not done: {video}")
