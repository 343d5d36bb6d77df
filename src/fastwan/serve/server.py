"""Runs the application until a signal ends it: what is being made is finished first."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.serve.service import Service
from fastwan.serve.settings import Settings

_IDLE_SECONDS = 75
"""Before an idle connection is closed: clients keep them for about a minute, and one that is closed
while the next request is on its way looks like a failure."""

_GRACE_SECONDS = 5
"""For the answers that are being sent when the last video is done."""


def listen(settings: Settings) -> socket.socket:
    """Listen where the settings say, before anything takes time.

    Raises:
        BadInput: no address of this machine.
        EnvironmentLacks: the port is taken, or may not be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    where = f"{settings.host}:{settings.port}"
    try:
        listening = socket.create_server((settings.host, settings.port), family=family)
        # asyncio does so for sockets that it makes; else the body of an answer waits 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OverflowError as error:
        raise BadInput("no port", where=where, fix="0 to 65535") from error
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise EnvironmentLacks(
                error.strerror or str(error), where=where, fix="name another one with --port"
            ) from error
        raise BadInput(f"{error.strerror}", where=where, fix="see --host") from error


class _Server(uvicorn.Server):
    """Drains on the first signal, and on the second ends the video that is being made."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN  # as SIGHUP is under nohup
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_draining:
            self._service.worker.stop()
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._service.is_drained():  # or the worker failed
            self.should_exit = True
        return await super().on_tick(counter)


def serve(app: FastAPI, listening: socket.socket, *, access_log: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Then no further request is accepted and no further video begun; the one that is being made is
    finished, unless it takes longer than the settings give it.

    Raises:
        FastWanError: the player could not be made ready, or failed.
    """
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_level="info" if access_log else "warning",
        access_log=access_log,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=_IDLE_SECONDS,
        server_header=False,
    )
    _Server(config, service).run(sockets=[listening])
    if service.worker.fault is not None:
        raise service.worker.fault
