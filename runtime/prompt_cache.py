"""Embeddings of prompts that were encoded before, in memory and, if wanted, on disk."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from fastwan.bundle import Bundle
from fastwan.runtime.model.executor import Array
from fastwan.staging import atomic_file

CAPACITY = 64
"""Prompts that are kept in memory, 4 MB each at the full size."""

_ENCODER = ("text_encoder/", "onnx/text_encoder", "onnx/tokenizer/", "onnx/embedding")


class PromptCache:
    """Least recently used prompts of one text encoder.

    Args:
        encoder: what identifies the encoder; part of every key.
        folder: keeps embeddings beyond the process; None for none.
    """

    def __init__(self, encoder: str, folder: Path | None = None, capacity: int = CAPACITY) -> None:
        self._encoder = encoder
        self._folder = folder
        self._capacity = capacity
        self._kept: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, bundle: Bundle, folder: Path | None = None) -> PromptCache:
        """Cache for a bundle; its encoder is the content of all files that make embeddings."""
        digest = hashlib.sha256()
        for name, record in sorted(bundle.manifest.files.items()):
            if name.startswith(_ENCODER):
                digest.update(f"{name} {record.sha256}\n".encode())
        return cls(digest.hexdigest(), folder)

    def get(self, prompt: str, encode: Callable[[str], Array]) -> Array:
        """Embeddings of a prompt, from the cache or from `encode`; read-only.

        May be called from several threads; two that miss at once both encode.
        """
        key = hashlib.sha256(f"{self._encoder}\n{prompt}".encode()).hexdigest()
        with self._lock:
            found = self._kept.pop(key, None)
        if found is None:
            found = self._load(key)
        if found is None:
            found = encode(prompt)
            self._store(key, found)
        found.flags.writeable = False
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return found

    def _load(self, key: str) -> Array | None:
        """An entry of the folder; None where there is none that can be read."""
        if self._folder is None:
            return None
        for path in self._folder.glob(f"{key}.*.npy"):
            try:
                raw = np.load(path, allow_pickle=False)
                return np.asarray(raw.view(np.dtype(path.suffixes[-2][1:])))
            except (OSError, ValueError, TypeError):
                continue
        return None

    def _store(self, key: str, embeds: Array) -> None:
        if self._folder is None:
            return
        unsigned = np.dtype(f"u{embeds.dtype.itemsize}")
        with atomic_file(self._folder / f"{key}.{embeds.dtype.name}.npy") as path:
            np.save(path, embeds.view(unsigned), allow_pickle=False)
