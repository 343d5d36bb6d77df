"""Outcomes of what is tried when a bundle is first loaded on a GPU, kept for the loads after it.

An outcome belongs to everything that it may depend on: the plugin library, the GPU and its driver,
and every engine of the bundle. One that is damaged, or of another form, is as good as none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from fastwan.bundle import Bundle
from fastwan.content_cache import ContentCache
from fastwan.errors import FastWanError
from fastwan.files import sha256_file
from fastwan.runtime.recording.machine import DeviceInfo
from fastwan.schema import Record
from fastwan.strict_json import parse_json

T = TypeVar("T", bound=Record)

_FILE = "outcome.json"


class FirstLoad:
    """Outcomes of one bundle on one GPU, by name; within this process and from one to the next.

    Args:
        cache: of the kind ``runtime``; None keeps them within this process.
        depends_on: everything that outcomes may depend on, by name.

    Attributes:
        found_out: names of the outcomes that this object was given, and not an earlier load.
    """

    def __init__(self, cache: ContentCache | None, depends_on: Mapping[str, object]) -> None:
        self._cache = cache
        self._depends_on = dict(depends_on)
        self._known: dict[str, Record] = {}
        self.found_out: set[str] = set()

    def find(self, name: str, kind: type[T]) -> T | None:
        """What was kept under a name; None where there is nothing that can be used."""
        known = self._known.get(name)
        if isinstance(known, kind):
            return known
        found = None if self._cache is None else self._cache.read(self._key(name))
        if found is None:
            return None
        try:
            outcome = kind.model_validate(parse_json(bytes(found[0][_FILE]), _FILE))
        except (KeyError, ValidationError, FastWanError):
            return None
        self._known[name] = outcome
        return outcome

    def keep(self, name: str, outcome: Record) -> None:
        """Keep an outcome in the place of what was there."""
        self._known[name] = outcome
        self.found_out.add(name)
        if self._cache is not None:
            content = outcome.model_dump_json().encode()
            self._cache.put(self._key(name), {_FILE: content}, {}, replace=True)

    def _key(self, name: str) -> str:
        parts = "\n".join(f"{part}={value}" for part, value in self._depends_on.items())
        return hashlib.sha256(f"first load\n{name}\n{parts}".encode()).hexdigest()


def first_load(bundle: Bundle, device: DeviceInfo, library: Path) -> FirstLoad:
    """Outcomes of a bundle on a GPU with a plugin library.

    Raises:
        EnvironmentLacks: the cache's size is no number.
    """
    manifest = bundle.manifest
    engines = {**manifest.engines, **manifest.fallback_engines}
    return FirstLoad(
        ContentCache("runtime"),
        {
            "library": sha256_file(library),
            "gpu": device.name,
            "compute_capability": device.compute_capability,
            "driver": device.driver,
            **{name: manifest.engine_record(each).sha256 for name, each in engines.items()},
        },
    )
