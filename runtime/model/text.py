"""Prompt to embeddings: tokenise, gather, encode at the true length, pad with zero rows."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors looks up by name
import numpy as np

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, FastWanWarning
from fastwan.runtime.model.executor import Array, Executor, require_names

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

TOKENIZER = "onnx/tokenizer/tokenizer.json"
EMBEDDING = "onnx/embedding.safetensors"
_TABLE = "weight"


def load_tokenizer(path: Path, text_length: int) -> Tokenizer:
    """UMT5 tokenizer that truncates at `text_length` tokens, ``</s>`` included, and never pads.

    Raises:
        BadInput: not a tokenizer file.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The library raises bare `Exception`.
    except Exception as error:
        raise BadInput(f"tokenizer cannot be read: {error}", where=path.name) from error
    tokenizer.enable_truncation(max_length=text_length)
    tokenizer.no_padding()
    return tokenizer


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

    The prompt is passed to the tokenizer as it is. The reference (FastVideo) does no cleaning;
    diffusers' Wan pipeline also mends text with ftfy where that is installed, resolves HTML
    entities and collapses white space. The tokenizer's own normaliser folds white space, so the
    two differ only for prompts with entities or broken encodings.

    Args:
        tokenizer: see `load_tokenizer`.
        table: the token embedding.
        executor: ``embeddings`` [1, L, d_model] -> ``hidden_states`` like it.
        text_length: rows of the padded result.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        table: EmbeddingTable,
        executor: Executor[Array],
        text_length: int,
    ) -> None:
        require_names(executor, "text_encoder", {"embeddings"}, {"hidden_states"})
        self._tokenizer = tokenizer
        self._table = table
        self._executor = executor
        self._text_length = text_length

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, executor: Executor[Array], text_length: int
    ) -> TextEncoder:
        """With the tokenizer and the embedding table of `bundle`, hash-checked.

        Raises:
            BadInput, VerificationFailed: a file is missing, unusable or differs from its hash.
        """
        tokenizer = load_tokenizer(bundle.file(TOKENIZER), text_length)
        return cls(tokenizer, EmbeddingTable(bundle.file(EMBEDDING)), executor, text_length)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the embeddings, [1, text_length, d_model]."""
        return (1, self._text_length, self._table.d_model)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the embeddings."""
        return np.dtype(self._executor.outputs["hidden_states"].dtype)

    def token_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt, ``</s>`` last, at most `text_length`; a warning tells of a cut.

        Raises:
            BadInput: the tokenizer has no tokens for it.
        """
        try:
            encoded = self._tokenizer.encode(prompt)
        # The library raises bare `Exception`.
        except Exception as error:
            raise BadInput(
                f"the tokenizer cannot read the prompt: {error}",
                where=TOKENIZER,
                fix="build the bundle again with the tokenizer of the model",
            ) from error
        if encoded.overflowing:
            warnings.warn(
                f"the prompt has more than {self._text_length} tokens, and what follows them is "
                "not read",
                FastWanWarning,
                stacklevel=1,  # said once, whoever asks
            )
        return list(encoded.ids)

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
