"""Downloading from the Hugging Face hub into its cache, in a way that a signal can end."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

_PARTIAL = re.compile(r"(?P<etag>.+)\.[0-9a-f]{8}\.incomplete")
_ABANDONED_SECONDS = 3600.0
"""A download writes every few seconds. On file systems whose locks do nothing this tells alone."""


class _Stopped(Exception):
    """Ends a download that nobody waits for any more."""


def download(repo: str, commit: str, names: Iterable[str], *, again: bool = False) -> None:
    """Download files of a model's repository into the hub's cache, several at a time.

    Args:
        repo: ``owner/name``.
        commit: full hash; nothing is noted about branches.
        names: files of the repository.
        again: replace files that are there already.

    Raises:
        Exception: whatever the hub's library raises.
    """
    import huggingface_hub
    from huggingface_hub.utils.tqdm import tqdm

    stop = threading.Event()

    class Bar(tqdm):
        """The library's own progress bar, which is told of every piece that arrives."""

        def update(self, n: float | None = 1) -> bool | None:
            _stop_if(stop)
            return super().update(n)  # type: ignore[no-any-return]

    fetch = partial(
        huggingface_hub.snapshot_download,
        repo,
        revision=commit,
        allow_patterns=[_literal(name) for name in names],
        force_download=again,
        tqdm_class=Bar,
    )
    # On a thread of its own, since the library waits for its downloads whatever is raised in it.
    with _no_request_after(stop):
        pool = ThreadPoolExecutor(1)
        try:
            pool.submit(fetch).result()
        finally:
            stop.set()
            pool.shutdown()


def sweep(repository: Path) -> None:
    """Remove what killed downloads left in a repository of the cache, which nothing takes up again.

    Args:
        repository: ``models--owner--name`` in the cache.
    """
    from filelock import FileLock, Timeout

    with suppress(OSError):
        for path in (repository / "blobs").iterdir():
            found = _PARTIAL.fullmatch(path.name)
            if found is None or path.is_symlink() or not path.is_file():
                continue
            if time.time() - path.stat().st_mtime < _ABANDONED_SECONDS:
                continue
            lock = repository.parent / ".locks" / repository.name / f"{found['etag']}.lock"
            with suppress(Timeout, NotImplementedError), FileLock(lock, timeout=0):
                path.unlink(missing_ok=True)


@contextmanager
def _no_request_after(stop: threading.Event) -> Iterator[None]:
    """Have the library's client refuse to ask again once `stop` is set."""
    from huggingface_hub import get_session

    client = get_session()
    # Before its version 1 the library has another client, which waits until it gives up.
    hooks = getattr(client, "event_hooks", None)
    if hooks is None:
        yield
        return

    def check(request: object) -> None:
        _stop_if(stop)

    client.event_hooks = {**hooks, "request": [*hooks.get("request", []), check]}
    try:
        yield
    finally:
        client.event_hooks = hooks


def _stop_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped


def _literal(name: str) -> str:
    """A pattern of `fnmatch` that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
