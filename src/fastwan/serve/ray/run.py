"""Runs the application on Ray until a signal ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from typing import Any

from fastwan import cuda_driver
from fastwan.console import say
from fastwan.errors import BadInput, EnvironmentLacks, first_line
from fastwan.serve.ray.application import build
from fastwan.serve.ray.options import Limits, Options
from fastwan.serve.settings import LOCAL_HOSTS

NAME = "fastwan"
"""Of the application on Ray Serve."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_on_ray(
    device: str,
    files: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    replicas: int,
    max_replicas: int | None,
) -> None:
    """Serve until SIGTERM or Ctrl-C: on the cluster that ``RAY_ADDRESS`` names, or a new one here.

    Args:
        device: as of ``generate``.
        files: bundle, tokens and prompt cache of `Options`.
        options: of the command: host, port, folder and `Limits`.

    Raises:
        BadInput: options that contradict each other.
        EnvironmentLacks: the application does not come up.
    """
    numbers = {name: options[name] for name in Limits.model_fields if name in options}
    # A replica may run in any folder, so nothing stays relative to this one.
    paths = {name: path and path.absolute() for name, path in files.items()}
    chosen = Options(
        **paths,
        folder=options["folder"].absolute(),
        host=options["host"],
        device=_device(device),
        replicas=replicas,
        max_replicas=max_replicas,
        limits=Limits(**numbers),
    )
    port = options["port"]
    if port == 0:
        raise BadInput("Ray Serve takes no free port", where="--port", fix="name one")
    chosen.settings()
    _serve(chosen, port)


def _serve(options: Options, port: int) -> None:
    import ray
    from ray import serve

    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    ray.init()
    for number, handler in handlers.items():
        signal.signal(number, handler)  # those of Ray end the process at once
    try:
        serve.start(http_options={"host": options.host, "port": port})
        try:
            serve.run(build(options), name=NAME)
        except RuntimeError as error:
            raise EnvironmentLacks(
                f"the application does not come up on Ray: {first_line(error)}",
                fix="see the logs of its replicas, in /tmp/ray/session_latest/logs/serve",
            ) from error
        say(f"{options.bundle} on http://{_in_url(options.host)}:{port}, {_replicas_text(options)}")
        if options.host not in LOCAL_HOSTS and options.tokens is None:
            say("warning: everybody who can connect is served: see --tokens")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            say("no further videos are begun")
        serve.delete(NAME)
    finally:
        ray.shutdown()


def _device(name: str) -> Any:
    """A device that Ray can be asked for; the machine decides where none is named."""
    if name != "auto":
        return name
    return "cuda" if cuda_driver.cuda_device_count() else "cpu"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _replicas_text(options: Options) -> str:
    least, most = options.replicas, options.most_replicas
    count = f"{least}" if least == most else f"{least} to {most}"
    return f"{count} replica{'s' if most > 1 else ''} on {options.device}"
