"""Work on threads whose results are taken in order, and what gets in the way of threads."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
T = TypeVar("T")


MAX_WORKERS = 4
"""Each worker holds a weight, or an engine and its weights, and beyond a few the disk is busy."""


def workers() -> int:
    """Threads to work on: the processors that this process may use, at most `MAX_WORKERS`."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    return min(os.cpu_count() or 1, MAX_WORKERS)


def in_order(
    make: Callable[[Item], T],
    items: Sequence[Item],
    workers: int,
    *,
    ahead: int = 0,
    stop: Callable[[], None] | None = None,
) -> Iterator[tuple[Item, T]]:
    """Yield ``(item, make(item))`` for each item, in their order.

    What `make` raises is raised when its item's turn comes; items behind it are then not begun.

    Args:
        workers: threads; with 1 everything runs in the caller's.
        ahead: how many results beyond the workers' own may wait for a slower one before them.
        stop: called when the caller stops early or an item fails; ends the calls that run, which
            are waited for.
    """
    if workers <= 1:
        for item in items:
            yield item, make(item)
        return
    with ThreadPoolExecutor(workers) as pool:
        begun = workers + ahead
        pending = [(item, pool.submit(make, item)) for item in items[:begun]]
        following = iter(items[begun:])
        try:
            while pending:
                item, future = pending[0]
                made = future.result()
                del pending[0]
                for more in following:
                    pending.append((more, pool.submit(make, more)))
                    break
                yield item, made
        finally:
            if pending:
                for _, future in pending:
                    future.cancel()
                if stop is not None:
                    stop()


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection in the body.

    Imports and traces make millions of objects that stay, and the collector would walk them all
    again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch computes on the calling thread alone in the body.

    OpenMP's threads wait for each other after every operation, and spin: of many small operations
    beside other work on the same processors, each takes a hundred times as long.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
