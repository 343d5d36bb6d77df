"""Names and shapes against the libraries that define them, and FastVideo's names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastwan.config import DecoderConfig, DiTConfig, TextEncoderConfig
from fastwan.export.checkpoint.names import (
    canonical_dit_name,
    expected_decoder_tensors,
    expected_dit_tensors,
    expected_text_encoder_tensors,
)

# Stored name -> diffusers name; left, what FastVideo's modules call their parameters.
FASTVIDEO = {
    "patch_embedding.proj.weight": "patch_embedding.weight",
    "patch_embedding.proj.bias": "patch_embedding.bias",
    "condition_embedder.text_embedder.fc_in.weight": (
        "condition_embedder.text_embedder.linear_1.weight"
    ),
    "condition_embedder.text_embedder.fc_out.bias": (
        "condition_embedder.text_embedder.linear_2.bias"
    ),
    "condition_embedder.time_embedder.mlp.fc_in.weight": (
        "condition_embedder.time_embedder.linear_1.weight"
    ),
    "condition_embedder.time_embedder.mlp.fc_out.weight": (
        "condition_embedder.time_embedder.linear_2.weight"
    ),
    "condition_embedder.time_modulation.linear.bias": "condition_embedder.time_proj.bias",
    "blocks.0.to_q.weight": "blocks.0.attn1.to_q.weight",
    "blocks.12.to_k.bias": "blocks.12.attn1.to_k.bias",
    "blocks.0.to_v.weight": "blocks.0.attn1.to_v.weight",
    "blocks.0.to_out.weight": "blocks.0.attn1.to_out.0.weight",
    "blocks.0.norm_q.weight": "blocks.0.attn1.norm_q.weight",
    "blocks.0.norm_k.weight": "blocks.0.attn1.norm_k.weight",
    "blocks.0.attn2.to_out.bias": "blocks.0.attn2.to_out.0.bias",
    "blocks.0.attn2.to_q.weight": "blocks.0.attn2.to_q.weight",
    "blocks.0.ffn.fc_in.weight": "blocks.0.ffn.net.0.proj.weight",
    "blocks.0.ffn.fc_out.weight": "blocks.0.ffn.net.2.weight",
    "blocks.0.self_attn_residual_norm.norm.weight": "blocks.0.norm2.weight",
    "blocks.0.scale_shift_table": "blocks.0.scale_shift_table",
    "proj_out.weight": "proj_out.weight",
}


@pytest.mark.parametrize(("stored", "canonical"), FASTVIDEO.items())
@pytest.mark.parametrize("prefix", ["", "model.", "transformer.", "generator.model."])
def test_fastvideo_names_become_diffusers_names(stored: str, canonical: str, prefix: str) -> None:
    assert canonical_dit_name(prefix + stored) == canonical
    assert canonical in expected_dit_tensors(DiTConfig())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_wans_names_become_what_diffusers_makes_of_them(
    wan_name: Callable[[str], str], prefix: str
) -> None:
    loading = pytest.importorskip("diffusers.loaders.single_file_utils")
    names = list(expected_dit_tensors(DiTConfig(num_layers=2)))
    native = {prefix + wan_name(name): torch.zeros(0) for name in names}
    assert len(native) == len(names)
    assert sum(name.removeprefix(prefix) in names for name in native) == 2  # patch_embedding
    theirs = loading.convert_wan_transformer_to_diffusers(dict(native))
    assert sorted(theirs) == sorted(names)
    assert sorted(map(canonical_dit_name, native)) == sorted(names)


def test_diffusers_names_stay() -> None:
    for name in expected_dit_tensors(DiTConfig()):
        assert canonical_dit_name(name) == name


def test_the_transformer_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    config = DiTConfig(num_layers=2, num_heads=3, ffn_dim=640, text_dim=96, freq_dim=64)
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel(
            num_layers=2, num_attention_heads=3, ffn_dim=640, text_dim=96, freq_dim=64
        )
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert expected_dit_tensors(config) == theirs


def test_the_text_encoder_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = TextEncoderConfig(
        vocab_size=50, d_model=64, d_kv=24, d_ff=112, num_layers=2, num_heads=4
    )
    with torch.device("meta"):
        model = transformers.UMT5EncoderModel(
            transformers.UMT5Config(
                vocab_size=50,
                d_model=64,
                d_kv=24,
                d_ff=112,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        )
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    del theirs["encoder.embed_tokens.weight"]  # tied to shared.weight
    assert expected_text_encoder_tensors(config) == theirs


def test_the_published_sizes() -> None:
    """1,418,996,800 parameters of Wan2.1-T2V-1.3B, 5.68 B of UMT5-XXL's encoder."""

    def count(shapes: dict[str, tuple[int, ...]]) -> int:
        return sum(torch.Size(shape).numel() for shape in shapes.values())

    assert count(expected_dit_tensors(DiTConfig())) == 1_418_996_800
    assert count(expected_text_encoder_tensors(TextEncoderConfig())) == 5_680_910_336


def test_the_decoder_is_that_of_taehv() -> None:
    """Keys and shapes of `decoder.*` in taew2_1, written down from taehv.py."""
    shapes = expected_decoder_tensors(DecoderConfig())
    assert len(shapes) == 64
    assert shapes["decoder.1.weight"] == (256, 16, 3, 3)
    assert shapes["decoder.1.bias"] == (256,)
    assert shapes["decoder.3.conv.0.weight"] == (256, 512, 3, 3)
    assert shapes["decoder.5.conv.4.bias"] == (256,)
    assert shapes["decoder.7.conv.weight"] == (256, 256, 1, 1)
    assert shapes["decoder.8.weight"] == (128, 256, 3, 3)
    assert shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.14.weight"] == (64, 128, 3, 3)
    assert shapes["decoder.19.conv.weight"] == (128, 64, 1, 1)
    assert shapes["decoder.20.weight"] == (64, 64, 3, 3)
    assert shapes["decoder.22.weight"] == (3, 64, 3, 3)
    assert "decoder.8.bias" not in shapes


def test_the_decoder_against_the_original() -> None:
    taehv = pytest.importorskip("taehv", reason="taehv is not installed (it is not on PyPI)")
    model = taehv.TAEHV(checkpoint_path=None)
    theirs = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name.startswith("decoder.")
    }
    assert expected_decoder_tensors(DecoderConfig()) == theirs
