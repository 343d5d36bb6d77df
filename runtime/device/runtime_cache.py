"""Kernels that TensorRT-RTX compiled for a bundle's engines, kept from one process to the next.

Engines for RTX hold no GPU code: it is compiled when they are loaded. The cache is one file for
all engines of a bundle, in the user's cache folder and never in the bundle, whose files are fixed.
Nothing here may keep a bundle from starting: without the file kernels are compiled, as before.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastwan.bundle import Bundle
from fastwan.files import atomic_file, default_cache_dir
from fastwan.runtime.components import State
from fastwan.runtime.recording.machine import DeviceInfo

FOLDER = "runtime"
"""Where the files lie in the cache folder."""

MAX_BYTES = 1 << 30
"""Largest file that is read or written."""

MAX_FILES = 8
"""Files that are kept; those used longest ago go first."""


_SUFFIX = ".rtxcache"
_DIGEST_BYTES = hashlib.sha256().digest_size


class RuntimeCache:
    """Compiled kernels of one bundle on one GPU.

    Args:
        path: file that keeps them; see `cache_file`.

    Attributes:
        state: ``hit`` where kernels of an earlier process were taken over, ``miss`` where there
            were none to take over, ``unused`` before the first engine and where TensorRT-RTX
            refuses a cache.
    """

    def __init__(self, path: Path) -> None:
        self.state: State = "unused"
        self._path = path
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
        """Write what has been compiled by now, where it is not what the file holds already."""
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
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_file(self._path) as temporary, temporary.open("wb") as stream:
                stream.write(digest)
                stream.write(blob)
            self._kept = digest
            _prune(self._path)
        except Exception as error:  # whatever it is, the video is made without
            _note(f"compiled kernels are not kept: {error}")

    def _load(self) -> bool:
        """Take over the file's kernels; False where it has none for here."""
        try:
            if self._path.stat().st_size > MAX_BYTES + _DIGEST_BYTES:
                raise ValueError("it is too large")
            content = self._path.read_bytes()
            digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            # Before TensorRT-RTX parses it: what a crash or a disk left of it is not its business.
            if hashlib.sha256(blob).digest() != digest:
                raise ValueError("it is not what was written")
            if not self._native.deserialize(blob):
                raise ValueError("TensorRT-RTX does not take it")
        except FileNotFoundError:
            return False
        except Exception as error:  # whatever it is, kernels can be compiled
            _note(f"{self._path.name} is ignored, kernels are compiled: {error}")
            return False
        with suppress(OSError):
            self._path.touch()
        self._kept = digest
        return True


def cache_file(
    bundle: Bundle, version: str, device: DeviceInfo, folder: Path | None = None
) -> Path:
    """File of a bundle's compiled kernels, named by what they are a function of.

    Args:
        version: of TensorRT-RTX.
        folder: by default ``runtime`` in `fastwan.files.default_cache_dir`.
    """
    manifest = bundle.manifest
    parts: Mapping[str, object] = {
        "version": version,
        "gpu": device.name,
        "compute_capability": device.compute_capability,
        "driver": device.driver,
        **{name: manifest.files[engine.file].sha256 for name, engine in manifest.engines.items()},
    }
    content = "\n".join(f"{name}={value}" for name, value in parts.items())
    key = hashlib.sha256(content.encode()).hexdigest()
    return (folder or default_cache_dir() / FOLDER) / f"{key}{_SUFFIX}"


def _prune(keep: Path) -> None:
    """Remove the files used longest ago, and what a process that was killed left behind."""
    with suppress(OSError):  # another process removes them too
        files = sorted(keep.parent.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-MAX_FILES]:
            if path != keep:
                path.unlink(missing_ok=True)


def _note(reason: str) -> None:
    warnings.warn(f"runtime cache: {reason}", RuntimeWarning, stacklevel=3)
