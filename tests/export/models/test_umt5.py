"""The UMT5 encoder against transformers on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastwan.config import TextEncoderConfig
from fastwan.export.models.umt5 import UMT5Encoder, relative_buckets
from fastwan.export.recipes import BF16

TINY = TextEncoderConfig(vocab_size=96, d_model=64, d_kv=16, d_ff=160, num_layers=3, num_heads=4)


def _original(config: TextEncoderConfig = TINY, dtype: torch.dtype = torch.float32) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            layer_norm_epsilon=config.eps,
            feed_forward_proj="gated-gelu",
            attn_implementation="eager",
        )
    ).eval()
    for name, value in model.named_parameters():
        # The default initialisation has a bias so small that leaving it out would pass.
        value.requires_grad_(False)
        if "relative_attention_bias" in name:
            value.normal_(std=1.5)
        elif "layer_norm" in name:
            value.normal_(mean=1.0, std=0.2)
        elif ".q." in name:
            value.normal_(std=config.d_model**-0.5)
    return model.to(dtype)


def _ours(original: Any, dtype: torch.dtype = torch.float32) -> UMT5Encoder:
    encoder = UMT5Encoder(TINY, BF16(), dtype).eval()
    state = original.state_dict()
    state.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    encoder.load_state_dict(state)
    return encoder


def _relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def _tokens(length: int) -> torch.Tensor:
    return torch.randint(
        0, TINY.vocab_size, (1, length), generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("length", [1, 2, 19, 200, 512])
def test_equals_transformers_at_true_length(length: int) -> None:
    original = _original()
    tokens = _tokens(length)
    hidden = _ours(original)(tokens)
    assert _relative(hidden, original(tokens).last_hidden_state) < 1e-5


def test_true_length_equals_padded_with_mask() -> None:
    original = _original()
    tokens = _tokens(37)
    padded = torch.nn.functional.pad(tokens, (0, 512 - 37))
    mask = (torch.arange(512) < 37).long()[None]
    expected = original(padded, attention_mask=mask).last_hidden_state[:, :37]
    assert _relative(_ours(original)(tokens), expected) < 1e-5
    without_mask = original(padded).last_hidden_state[:, :37]
    assert _relative(_ours(original)(tokens), without_mask) > 1e-2


@pytest.mark.parametrize("tensor", ["relative_attention_bias", "wi_1", "layer_norm", "k"])
def test_every_kind_of_weight_is_used(tensor: str) -> None:
    original = _original()
    tokens = _tokens(19)
    expected = original(tokens).last_hidden_state
    ours = _ours(original)
    with torch.no_grad():
        name, value = next((n, v) for n, v in ours.state_dict().items() if f".{tensor}." in n)
        value.copy_(value.roll(1, 0))
    assert _relative(ours(tokens), expected) > 1e-3, name


def test_bf16_stays_within_its_rounding() -> None:
    original = _original()
    tokens = _tokens(64)
    exact = original(tokens).last_hidden_state
    theirs = _original(dtype=torch.bfloat16)
    ours = _ours(theirs, torch.bfloat16)(tokens)
    assert ours.dtype == torch.bfloat16
    error, reference = _relative(ours, exact), _relative(theirs(tokens).last_hidden_state, exact)
    assert error < 1.2 * reference < 0.1


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 100), (16, 64)])
def test_buckets_equal_transformers(buckets: int, distance: int) -> None:
    config = TextEncoderConfig(
        vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        num_buckets=buckets, max_distance=distance,
    )  # fmt: skip
    attention = _original(config).encoder.block[0].layer[0].SelfAttention
    position = torch.arange(512)
    expected = attention._relative_position_bucket(position[None, :] - position[:, None])
    ours = relative_buckets(config, 512)
    assert ours.dtype == torch.int32
    assert torch.equal(ours.long(), expected)
