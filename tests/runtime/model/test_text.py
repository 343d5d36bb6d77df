"""Prompts: tokens, rows of the embedding table, padding with zero rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput, FastWanWarning
from fastwan.runtime.cpu.executor import cpu_executor
from fastwan.runtime.model.text import EmbeddingTable, TextEncoder, pad_rows
from fastwan.runtime.text import load_tokenizer, open_text_encoder


@pytest.fixture
def encoder(bundle: Any) -> TextEncoder:
    opened = open_bundle(bundle.root)
    return open_text_encoder(opened, cpu_executor(opened, "text_encoder"), 6)


def test_tokens_end_with_eos_are_cut_at_the_text_length_and_never_padded(
    encoder: TextEncoder,
) -> None:
    # The tokenizer file asks for padding, which the encoder must not see.
    assert encoder.token_ids("a red fox") == [2, 3, 4, 0]
    assert encoder.token_ids("") == [0]
    with pytest.warns(FastWanWarning, match="more than 6 tokens"):
        assert encoder.token_ids("a red fox runs a red fox runs") == [2, 3, 4, 5, 2, 0]


def test_prompt_reaches_the_tokenizer_unchanged(encoder: TextEncoder) -> None:
    # The reference does no cleaning: an entity stays the unknown words it is.
    assert encoder.token_ids("&amp;") != encoder.token_ids("&")


def test_prompt_is_encoded_at_its_true_length_and_padded_with_zeros(
    encoder: TextEncoder, bundle: Any
) -> None:
    embeds = encoder.encode("red fox")
    assert embeds.shape == (1, 6, 8)
    rows = load_file(bundle.onnx / "embedding.safetensors")["weight"][[3, 4, 0]].float()
    weight = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    expected = (rows @ torch.from_numpy(weight)).bfloat16().float().numpy()
    np.testing.assert_allclose(embeds[0, :3].astype(np.float32), expected, rtol=2**-7)
    assert not embeds[0, 3:].astype(np.float32).any()
    assert embeds[0, :3].astype(np.float32).all(axis=1).any()


def test_gather_returns_the_rows_bit_for_bit(tmp_path: Path) -> None:
    table = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"weight": table}, tmp_path / "embedding.safetensors")
    rows = EmbeddingTable(tmp_path / "embedding.safetensors").gather([9, 0, 9])
    assert rows.shape == (1, 3, 4)
    np.testing.assert_array_equal(
        rows[0].view(np.uint16), table[[9, 0, 9]].view(torch.uint16).numpy()
    )


def test_a_token_beyond_the_table_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(10, 4).bfloat16()}, tmp_path / "embedding.safetensors")
    table = EmbeddingTable(tmp_path / "embedding.safetensors")
    table.gather([9])
    with pytest.raises(BadInput, match="token 10 is beyond the 10 rows"):
        table.gather([10])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(10, 4)}, "not BF16"),
        ({"weight": torch.zeros(10).bfloat16()}, "not BF16 of two axes"),
        ({"other": torch.zeros(10, 4).bfloat16()}, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_an_unusable_table_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor] | None, message: str
) -> None:
    path = tmp_path / "embedding.safetensors"
    if tensors is None:
        path.write_bytes(b"\xff" * 64)
    else:
        save_file(tensors, path)
    with pytest.raises(BadInput, match=message):
        EmbeddingTable(path)


def test_an_unusable_tokenizer_is_refused(tmp_path: Path, bundle: Any) -> None:
    load_tokenizer(bundle.onnx / "tokenizer" / "tokenizer.json", 6)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="tokenizer cannot be read"):
        load_tokenizer(tmp_path / "tokenizer.json", 6)


def test_embeddings_that_are_too_long_are_refused() -> None:
    assert pad_rows(np.ones((1, 6, 8), np.float32), 6).all()
    with pytest.raises(BadInput, match=r"\[1, 7, 8\], not \[1, up to 6"):
        pad_rows(np.ones((1, 7, 8), np.float32), 6)


def test_a_bundle_without_text_encoder_names_the_way_out(make_bundle: Callable) -> None:
    from fastwan.runtime.pipeline import FastWanPipeline

    embeds = np.ones((1, 2, 8), np.float32)
    without = FastWanPipeline.from_bundle(make_bundle("a", text_encoder=False).root, "cpu")
    assert without(prompt_embeds=embeds, output_type="np").frames.shape == (1, 9, 16, 32, 3)
    with pytest.raises(BadInput, match="pass prompt_embeds"):
        without("a fox")
