"""Token ids to embeddings: gather, encode at the true length, pad with zero rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors looks up by name
import numpy as np

from fastwan.errors import BadInput
from fastwan.runtime.model.executor import Array, Executor, require_names

EMBEDDING = "onnx/embedding.safetensors"
_TABLE = "weight"


class EmbeddingTable:
    """The token embedding, [vocab, d_model] bf16, read a row at a time and never as a whole.

    Args:
        path: safetensors file with the table as ``weight``.

    Raises:
        BadInput: no such tensor, or not of two axes and bf16.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._name = path.name
        try:
            opened = cast(Any, safe_open(str(path), framework="numpy"))
            self._rows = opened.get_slice(_TABLE)
        except (SafetensorError, OSError) as error:
            raise BadInput(f"embedding table cannot be read: {error}", where=self._name) from error
        shape, dtype = self._rows.get_shape(), self._rows.get_dtype()
        if len(shape) != 2 or dtype != "BF16":
            raise BadInput(f"{_TABLE} is {dtype} {shape}, not BF16 of two axes", where=self._name)
        self.vocab_size, self.d_model = shape

    def gather(self, token_ids: list[int]) -> Array:
        """Rows of the tokens, [1, L, d_model] bf16.

        Raises:
            BadInput: a token is not in the table.
        """
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.vocab_size:
            raise BadInput(
                f"token {max(token_ids)} is beyond the {self.vocab_size} rows of the table",
                where=self._name,
                fix="tokenizer and text encoder do not belong together; build the bundle again",
            )
        return np.concatenate([self._rows[i : i + 1] for i in token_ids])[None]


class TextEncoder:
    """UMT5 over any executor that takes arrays.

    Args:
        token_ids: tokens of a prompt, ``</s>`` last, at most `text_length`.
        table: the token embedding.
        executor: ``embeddings`` [1, L, d_model] -> ``hidden_states`` like it.
        text_length: rows of the padded result.
    """

    def __init__(
        self,
        token_ids: Callable[[str], list[int]],
        table: EmbeddingTable,
        executor: Executor[Array],
        text_length: int,
    ) -> None:
        require_names(executor, "text_encoder", {"embeddings"}, {"hidden_states"})
        self.token_ids = token_ids
        self._table = table
        self._executor = executor
        self._text_length = text_length

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the embeddings, [1, text_length, d_model]."""
        return (1, self._text_length, self._table.d_model)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the embeddings."""
        return np.dtype(self._executor.outputs["hidden_states"].dtype)

    def encode(self, prompt: str) -> Array:
        """Embeddings of a prompt, [1, text_length, d_model], in the executor's output dtype."""
        token_ids = self.token_ids(prompt)
        if not token_ids:
            raise BadInput("prompt has no tokens", where="prompt", fix="the tokenizer adds no </s>")
        hidden = self._executor.run({"embeddings": self._table.gather(token_ids)})["hidden_states"]
        return pad_rows(hidden, self._text_length)


def pad_rows(hidden: Array, text_length: int) -> Array:
    """`hidden` [1, L, d] with zero rows behind it, [1, text_length, d].

    Raises:
        BadInput: not of that form, empty, or longer.
    """
    if hidden.ndim != 3 or hidden.shape[0] != 1 or not 1 <= hidden.shape[1] <= text_length:
        raise BadInput(
            f"prompt embeddings have shape {list(hidden.shape)}, "
            f"not [1, up to {text_length}, text_dim]",
            where="prompt_embeds",
        )
    padded = np.zeros((1, text_length, hidden.shape[2]), hidden.dtype)
    padded[:, : hidden.shape[1]] = hidden
    return padded
