"""Times named functions of programs that print no times of their own; Python loads it at start.

With this folder on ``PYTHONPATH``, ``PEER_HOOKS`` names functions by stage, ``{"decode":
["module:Class.method"]}``, and ``PEER_EVENTS`` the file to which every call of one is appended as a
line of JSON: stage, seconds, and when it began. Child processes are timed too, and the clock is one
of the whole machine. A call is timed between two waits for the GPU.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def _wait() -> None:
    """Wait for all work of the GPU, where torch is loaded and has one."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(function: Callable[..., Any], stage: str, events: str) -> Callable[..., Any]:
    """`function`, whose calls are written down."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        _wait()
        begin = time.monotonic()
        result = function(*args, **kwargs)
        _wait()
        line = {"stage": stage, "begin": begin, "seconds": time.monotonic() - begin}
        # One write of an appended line: processes do not tear each other's.
        with open(events, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        return result

    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "compiler"):
        return run
    # What is compiled inside stays compiled; the clock is not traced.
    kept: Callable[..., Any] = torch.compiler.disable(run, recursive=False)
    return kept


def hook(module: ModuleType, places: dict[str, str], events: str) -> None:
    """Replace the named functions of a module: stage by ``Class.method`` or ``function``."""
    for place, stage in places.items():
        *owners, name = place.split(".")
        owner: Any = module
        for each in owners:
            owner = getattr(owner, each, None)
        function = getattr(owner, "__dict__", {}).get(name)
        if callable(function):
            setattr(owner, name, timed(function, stage, events))


class Finder(importlib.abc.MetaPathFinder):
    """Hooks modules as they are imported."""

    def __init__(self, hooks: dict[str, dict[str, str]], events: str) -> None:
        self.hooks = hooks
        self.events = events

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.hooks:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            hook(module, self.hooks[name], self.events)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def by_module(stages: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """Stages by place, by module, of what ``PEER_HOOKS`` holds."""
    found: dict[str, dict[str, str]] = {}
    for stage, places in stages.items():
        for module, _, place in (each.partition(":") for each in places):
            found.setdefault(module, {})[place] = stage
    return found


if "PEER_HOOKS" in os.environ:
    hooks = by_module(json.loads(os.environ["PEER_HOOKS"]))
    sys.meta_path.insert(0, Finder(hooks, os.environ["PEER_EVENTS"]))
