"""Kernels that TensorRT-RTX compiled for a bundle's engines, kept from one process to the next.

Engines for RTX hold no GPU code: it is compiled when they are loaded. What was compiled for all
engines of a bundle is one entry of the user's cache, and never in the bundle, whose files are
fixed. Nothing here may keep a bundle from starting: without the entry kernels are compiled, as
before.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

from fastwan.bundle import Bundle
from fastwan.content_cache import ContentCache
from fastwan.errors import FastWanWarning
from fastwan.runtime.components import State
from fastwan.runtime.recording.machine import DeviceInfo

MAX_BYTES = 1 << 30
"""Most bytes of kernels that are kept for a bundle."""

_FILE = "kernels"


class RuntimeCache:
    """Compiled kernels of one bundle on one GPU.

    Args:
        cache: of the kind ``runtime``.
        key: of the entry that keeps them; see `kernels_key`.

    Attributes:
        state: ``hit`` where kernels of an earlier process were taken over, ``miss`` where there
            were none to take over, ``unused`` before the first engine and where TensorRT-RTX
            refuses a cache.
    """

    def __init__(self, cache: ContentCache, key: str) -> None:
        self.state: State = "unused"
        self._cache, self._key = cache, key
        self._native: Any = None  # has to outlive the contexts that compile into it
        self._kept = b""

    def attach(self, config: Any) -> None:
        """Let the contexts of an ``IRuntimeConfig`` share these kernels."""
        if self._native is None:
            self._native = config.create_runtime_cache()
            if self._native is None:
                return
            self.state = "hit" if self._load() else "miss"
        if not config.set_runtime_cache(self._native):
            self.state = "unused"
            _note("TensorRT-RTX refuses a runtime cache")

    def save(self) -> None:
        """Keep what has been compiled by now, where it is not what is kept already."""
        if self._native is None or self.state == "unused":
            return
        try:
            serialized = self._native.serialize()
            blob = b"" if serialized is None else bytes(serialized)
            digest = hashlib.sha256(blob).digest()
            if not blob or digest == self._kept:
                return
            if len(blob) > MAX_BYTES:
                _note(f"{len(blob):,} bytes of compiled kernels are not kept")
                return
            self._cache.put(self._key, {_FILE: blob}, {}, replace=True)
            self._kept = digest
        except Exception as error:  # whatever it is, the video is made without
            _note(f"compiled kernels are not kept: {error}")

    def _load(self) -> bool:
        """Take over kernels that were kept; False where there are none for here."""
        try:
            found = self._cache.read(self._key)
            if found is None:
                return False
            blob = bytes(found[0][_FILE])
            if not self._native.deserialize(blob):
                raise ValueError("TensorRT-RTX does not take them")
        except Exception as error:  # whatever it is, kernels can be compiled
            _note(f"what was kept is ignored, kernels are compiled: {error}")
            return False
        self._kept = hashlib.sha256(blob).digest()
        return True


def kernels_key(bundle: Bundle, version: str, device: DeviceInfo) -> str:
    """Key of a bundle's compiled kernels: a hash of what they are a function of.

    Args:
        version: of TensorRT-RTX.
    """
    manifest = bundle.manifest
    parts: Mapping[str, object] = {
        "version": version,
        "gpu": device.name,
        "compute_capability": device.compute_capability,
        "driver": device.driver,
        **{name: manifest.engine_record(each).sha256 for name, each in manifest.engines.items()},
    }
    content = "\n".join(f"{name}={value}" for name, value in parts.items())
    return hashlib.sha256(content.encode()).hexdigest()


def _note(reason: str) -> None:
    warnings.warn(f"runtime cache: {reason}", FastWanWarning, stacklevel=3)
