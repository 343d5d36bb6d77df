"""Embeddings of prompts that were encoded before, in memory and, if wanted, on disk."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from fastwan.bundle import Bundle
from fastwan.content_cache import ContentCache
from fastwan.errors import VerificationFailed
from fastwan.runtime.model.checks import is_finite
from fastwan.runtime.model.executor import Array

CAPACITY = 64
"""Prompts that are kept in memory, 4 MB each at the full size."""

_FILES = ("text_encoder/", "onnx/text_encoder", "onnx/tokenizer/", "onnx/embedding")
_EMBEDS = "prompt_embeds"


class PromptEncoder(Protocol):
    """What makes embeddings; `fastwan.runtime.model.text.TextEncoder` is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what `encode` returns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what `encode` returns."""

    def encode(self, prompt: str) -> Array:
        """Embeddings of a prompt."""


class PromptCache:
    """Least recently used prompts of one text encoder. Any number of threads may use it at once.

    What a folder holds is used only where it is, by its hash, what was stored for this prompt and
    this encoder, and has the encoder's shape and dtype; else the prompt is encoded again.

    Args:
        encoder: what identifies the encoder and what runs it; part of every key.
        folder: keeps embeddings beyond the process; None for none.
    """

    def __init__(
        self, encoder: str, folder: Path | str | None = None, capacity: int = CAPACITY
    ) -> None:
        self._encoder = encoder
        self._stored = None if folder is None else ContentCache("prompts", Path(folder))
        self._capacity = capacity
        self._kept: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, bundle: Bundle, folder: Path | str | None = None, *, runs_on: str = ""
    ) -> PromptCache:
        """Cache for a bundle; its encoder is the content of all files that make embeddings.

        Args:
            runs_on: device and library; the last bits of the embeddings depend on them.
        """
        digest = hashlib.sha256(f"{runs_on}\n".encode())
        for name, record in sorted(bundle.manifest.files.items()):
            if name.startswith(_FILES):
                digest.update(f"{name} {record.sha256}\n".encode())
        return cls(digest.hexdigest(), folder)

    def get(self, prompt: str, encoder: PromptEncoder) -> Array:
        """Embeddings of a prompt, from the cache or from `encoder`; read-only.

        Two threads that miss at once both encode.

        Raises:
            VerificationFailed: the encoder makes NaN or Inf.
        """
        key = hashlib.sha256(f"{self._encoder}\n{prompt}".encode()).hexdigest()
        with self._lock:
            found = self._kept.pop(key, None)
        if found is None:
            found = self._load(key, encoder)
        if found is None:
            found = encoder.encode(prompt)
            if not is_finite(found):
                raise VerificationFailed(
                    "the prompt's embeddings hold NaN or Inf",
                    where="text_encoder",
                    fix="its weights are broken: build the bundle again",
                )
            self._store(key, found)
        found.flags.writeable = False
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return found

    def _load(self, key: str, encoder: PromptEncoder) -> Array | None:
        """An entry of the folder; None, and no entry any more, where it does not fit."""
        if self._stored is None or (entry := self._stored.read(key)) is None:
            return None
        contents, note = entry
        raw = contents.get(_EMBEDS, b"")
        if note == _note(encoder.shape, encoder.dtype) and len(raw) == math.prod(
            (*encoder.shape, encoder.dtype.itemsize)
        ):
            embeds = np.frombuffer(raw, encoder.dtype).reshape(encoder.shape)
            if is_finite(embeds):
                return embeds
        self._stored.forget(key)
        return None

    def _store(self, key: str, embeds: Array) -> None:
        if self._stored is not None:
            raw = np.ascontiguousarray(embeds).reshape(-1).view(np.uint8).data
            self._stored.put(key, {_EMBEDS: raw}, _note(embeds.shape, embeds.dtype))


def _note(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": dtype.name}
