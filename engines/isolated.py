"""Build each engine in a process of its own, so that builds repeat to the byte.

TensorRT writes some lists in the order of the addresses of its objects, and those follow from what
the process did before: two builds of one graph in one process differ. A small worker process,
which never builds anything itself, forks for every engine; in the child a new thread has a heap
that nothing has touched. A parser that aborts ends the child and not the command.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fastwan.engines.backend import Backend, BuildOptions, BuiltEngine, load_backend
from fastwan.engines.source import EngineSource
from fastwan.errors import BadInput, FastWanError
from fastwan.progress import Progress, Quiet


def can_isolate() -> bool:
    """Whether this system can fork."""
    return hasattr(os, "fork")


class Worker:
    """The process that forks; started at once, ended by `close` or with its parent.

    Args:
        backend: name of the backend that builds; its ``build_here`` is called in the children.
    """

    def __init__(self, backend: str) -> None:
        from multiprocessing import Pipe

        self.child = 0  # process id of the build that runs
        self._closing = threading.Lock()
        self._connection, theirs = Pipe()
        # Its end in the worker is closed by the system however this process ends.
        theirs_alive, self._alive = Pipe(duplex=False)
        environment = os.environ | {
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "GLIBC_TUNABLES": _with_huge_pages(os.environ.get("GLIBC_TUNABLES", "")),
        }
        handles = (theirs.fileno(), theirs_alive.fileno())
        command = [sys.executable, "-m", "fastwan.engines.isolated", backend, *map(str, handles)]
        self._process = subprocess.Popen(
            command,
            pass_fds=handles,
            stdin=subprocess.DEVNULL,
            env=environment,
            process_group=0,
        )
        theirs.close()
        theirs_alive.close()

    def build(self, source: EngineSource, options: BuildOptions, progress: Progress) -> BuiltEngine:
        """Build one engine in a child.

        Raises:
            FastWanError: what the build raised.
            BadInput: the child was ended by a signal, such as an abort of the parser.
            KeyboardInterrupt: Ctrl-C; the caller closes the worker.
        """
        with tempfile.TemporaryDirectory(prefix="fastwan-engine-", dir=options.scratch) as folder:
            file = Path(folder) / "plan"
            outcome: Any = None
            try:
                self._connection.send((source, options, file))
                while True:
                    kind, value = self._connection.recv()
                    if kind == "ended":
                        break
                    if kind == "note":
                        progress.advance(0, value)
                    elif kind == "child":
                        self.child = value
                    else:
                        outcome = value
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise BadInput("the build process ended by itself", where=source.name) from None
            if outcome is None:
                name = signal.Signals(os.WTERMSIG(value)).name if os.WIFSIGNALED(value) else value
                raise BadInput(
                    f"the builder ended with {name}",
                    where=source.name,
                    fix="see its message above; too little memory ends it with SIGKILL",
                )
            if isinstance(outcome, BuiltEngine):
                return replace(outcome, plan=_map(file))
        if isinstance(outcome, tuple):
            error, what, where, fix = outcome
            raise error(what, where=where, fix=fix)
        raise RuntimeError(f"{source.name}: {outcome}")

    def close(self) -> None:
        """End the worker and what it may be building; may be called while another thread builds."""
        # The whole group at once, and with a signal that nothing handles: a handler in Python waits
        # for the call that the worker is in, which may be one that has not begun to block. The
        # connection stays open: a thread that reads from it sees its end, not a closed handle.
        with self._closing:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


class WorkerPool:
    """Workers of one backend, as many as build at once; one that has built waits for the next.

    Args:
        backend: see `Worker`.

    Attributes:
        workers: all that run.
        idle: those of them that build nothing.
    """

    def __init__(self, backend: str) -> None:
        self.workers: list[Worker] = []
        self.idle: list[Worker] = []
        self._backend = backend
        self._lock = threading.Lock()

    def build(self, source: EngineSource, options: BuildOptions, progress: Progress) -> BuiltEngine:
        """Build one engine in a worker that is idle or new; see `Worker.build`."""
        worker = self._take()
        try:
            built = worker.build(source, options, progress)
        except BaseException:
            worker.close()  # whatever it was doing, the next build starts afresh
            with self._lock:
                self.workers = [other for other in self.workers if other is not worker]
            raise
        with self._lock:
            self.idle.append(worker)
        return built

    def close(self) -> None:
        """End all workers; a later build starts new ones."""
        with self._lock:
            workers = list(self.workers)
            self.workers.clear()
            self.idle.clear()
        for worker in workers:
            worker.close()

    def _take(self) -> Worker:
        with self._lock:
            if self.idle:
                return self.idle.pop()
            worker = Worker(self._backend)
            self.workers.append(worker)
            return worker


def _with_huge_pages(tunables: str) -> str:
    """glibc settings under which ``malloc`` asks for huge pages; other C libraries ignore them.

    A build copies its weights again and again into memory that is new each time. With huge pages
    its page faults fall to less than half, and its processor time by a sixth (measured).
    """
    return ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))


def _map(file: Path) -> memoryview:
    with file.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def serve(backend: str, descriptor: int, alive: int) -> None:
    """Body of the worker: fork for each request until the parent is gone.

    Args:
        descriptor: of the connection that requests come from.
        alive: of a pipe that nobody writes to; its end says that the parent was killed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what they mean
    connection = Connection(descriptor)
    builder = load_backend(backend)
    builder.version()  # loads the library once, before the forks
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        child = os.fork()
        if child == 0:
            connection.send(("child", os.getpid()))
            _build_and_send(connection, builder, *request)
            os._exit(0)
        connection.send(("ended", _status(child, alive)))


def _status(child: int, alive: int) -> int:
    """Status of a build that ended; kills it and the worker when nobody waits for it any more.

    No thread watches: one that is there when the worker forks leaves its heap to the build's.
    """
    handles, patience = [alive], 0.05
    if hasattr(os, "pidfd_open"):
        handles.append(os.pidfd_open(child))
        patience = 60.0
    try:
        while True:
            ready, _, _ = select.select(handles, [], [], patience)
            if alive in ready:
                os.killpg(0, signal.SIGKILL)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
    finally:
        for handle in handles[1:]:
            os.close(handle)


class _Notes(Quiet):
    """Sends what a build reports to the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def advance(self, amount: int = 1, note: str = "") -> None:
        try:
            self._connection.send(("note", note))
        except OSError:
            os._exit(1)  # the parent is gone; nobody waits for this engine


def _build_and_send(
    connection: Connection,
    builder: Backend,
    source: EngineSource,
    options: BuildOptions,
    file: Path,
) -> None:
    def work() -> None:
        try:
            # The builder keeps the path it is given, so a longer one would move what follows it.
            os.chdir(source.base_dir)
            here = replace(source, base_dir=Path("."))
            built = builder.build_here(here, options, _Notes(connection))
            with file.open("wb") as stream:
                stream.write(built.plan)
            # A view cannot be sent; the parent maps the file.
            connection.send(("outcome", replace(built, plan=b"")))  # type: ignore[arg-type]
        except FastWanError as error:
            connection.send(("outcome", (type(error), error.what, error.where, error.fix)))
        except Exception as error:
            connection.send(("outcome", repr(error)))

    run_in_thread(work)


def run_in_thread(work: Callable[[], None]) -> None:
    """Call `work` on a new thread, whose heap nothing else has used, and wait."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
