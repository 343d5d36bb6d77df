"""Downloading from the Hugging Face hub into its cache, in a way that a signal can end."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial


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
            if stop.is_set():
                raise _Stopped
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
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(fetch)
        try:
            work.result()
        finally:
            stop.set()


def _literal(name: str) -> str:
    """A pattern of `fnmatch` that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
