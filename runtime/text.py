"""Prompt to token ids, and a bundle's text encoder from both of its parts."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, FastWanWarning
from fastwan.runtime.model.executor import Array, Executor
from fastwan.runtime.model.text import EMBEDDING, EmbeddingTable, TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

TOKENIZER = "onnx/tokenizer/tokenizer.json"


def load_tokenizer(path: Path, text_length: int) -> Tokenizer:
    """A tokenizer from its file, see `parse_tokenizer`."""
    return parse_tokenizer(path.read_bytes(), path.name, text_length)


def parse_tokenizer(content: bytes, where: str, text_length: int) -> Tokenizer:
    """UMT5 tokenizer that truncates at `text_length` tokens, ``</s>`` included, and never pads.

    Args:
        content: of ``tokenizer.json``.
        where: its name, for errors.

    Raises:
        BadInput: not a tokenizer file.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(content)
    # The library raises bare `Exception`.
    except Exception as error:
        raise BadInput(f"tokenizer cannot be read: {error}", where=where) from error
    tokenizer.enable_truncation(max_length=text_length)
    tokenizer.no_padding()
    return tokenizer


def open_text_encoder(bundle: Bundle, executor: Executor[Array], text_length: int) -> TextEncoder:
    """The text encoder of `bundle` over an executor of its graph, files hash-checked.

    The prompt is passed to the tokenizer as it is. The reference (FastVideo) does no cleaning;
    diffusers' Wan pipeline also mends text with ftfy where that is installed, resolves HTML
    entities and collapses white space. The tokenizer's own normaliser folds white space, so the
    two differ only for prompts with entities or broken encodings.

    Raises:
        BadInput, VerificationFailed: a file is missing, unusable or differs from its hash.
    """
    tokenizer = parse_tokenizer(bundle.read(TOKENIZER), TOKENIZER, text_length)

    def token_ids(prompt: str) -> list[int]:
        return encode_prompt(tokenizer, prompt, text_length)

    table = EmbeddingTable(bundle.file(EMBEDDING))
    return TextEncoder(token_ids, table, executor, text_length)


def encode_prompt(tokenizer: Tokenizer, prompt: str, text_length: int) -> list[int]:
    """Tokens of a prompt, ``</s>`` last, at most `text_length`; a warning tells of a cut.

    Raises:
        BadInput: the tokenizer has no tokens for it.
    """
    try:
        encoded = tokenizer.encode(prompt)
    # The library raises bare `Exception`.
    except Exception as error:
        raise BadInput(
            f"the tokenizer cannot read the prompt: {error}",
            where=TOKENIZER,
            fix="build the bundle again with the tokenizer of the model",
        ) from error
    if encoded.overflowing:
        warnings.warn(
            f"the prompt has more than {text_length} tokens, and what follows them is not read",
            FastWanWarning,
            stacklevel=1,  # said once, whoever asks
        )
    return list(encoded.ids)
