"""The UMT5 encoder that turns prompt tokens into the transformer's text context.

Architecture of transformers' ``UMT5EncoderModel`` (T5 1.1 with a position bias in every block;
Raffel et al. 2020, Chung et al. 2023), under its tensor names. Precision follows the published
run: bf16 activations, norms and GELU in fp32. A prompt is encoded at its true length, so there
is no attention mask; attention scores are not scaled.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastwan.config import TextEncoderConfig
from fastwan.export.models.layers import Linear, Norm, rms_norm
from fastwan.export.recipes import BF16, Recipe

EMBEDDING = "shared.weight"
"""Name of the token embedding in the checkpoint."""


def relative_buckets(config: TextEncoderConfig, length: int) -> Tensor:
    """Bucket of every (query, key) pair, [length, length] int32.

    A bucket for each sign; half of them for one distance each, the rest for ranges that grow
    logarithmically up to `max_distance` (Raffel et al. 2020, section 2.1). Computed in whole
    numbers, so that no machine's logarithm decides: bucket `exact + k` begins where
    ``(distance / exact)^steps >= (max_distance / exact)^k``.
    """
    per_sign = config.num_buckets // 2
    exact = per_sign // 2
    steps = per_sign - exact

    def bucket(distance: int) -> int:
        if distance < exact:
            return distance
        k = 0
        while k + 1 < steps and (
            distance**steps * exact ** (k + 1) >= config.max_distance ** (k + 1) * exact**steps
        ):
            k += 1
        return exact + k

    by_distance = torch.tensor([bucket(distance) for distance in range(length)], dtype=torch.int32)
    position = torch.arange(length)
    offset = position[None, :] - position[:, None]
    return by_distance[offset.abs()] + (offset > 0).to(torch.int32) * per_sign


class Table(nn.Module):
    """Holder of an embedding's rows, [rows, columns]."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", torch.empty(rows, columns, dtype=dtype))


class SelfAttention(nn.Module):
    """Unscaled attention with an additive position bias, [1, L, d_model] -> the same."""

    def __init__(self, config: TextEncoderConfig, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.num_heads * config.d_kv
        self.q = Linear(config.d_model, inner, recipe, dtype, bias=False)
        self.k = Linear(config.d_model, inner, recipe, dtype, bias=False)
        self.v = Linear(config.d_model, inner, recipe, dtype, bias=False)
        self.o = Linear(inner, config.d_model, recipe, dtype, bias=False)
        self.relative_attention_bias = Table(config.num_buckets, config.num_heads, dtype)

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        # [L, L, H] -> [1, H, L, L]
        bias = F.embedding(buckets, self.relative_attention_bias.weight)
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        out = torch.onnx.ops.attention(
            self.q(x),
            self.k(x),
            self.v(x),
            bias,
            scale=1.0,
            q_num_heads=self.num_heads,
            kv_num_heads=self.num_heads,
        )[0]
        return cast(Tensor, self.o(out))


class FeedForward(nn.Module):
    """Gated feed-forward: gelu_tanh(wi_0 x) * wi_1 x, then wo.

    The input of ``wo`` is a product without a norm behind it, whose range T5 is known for; an FP4
    activation with the static scale 1.0 ends at 2688, so ``wo`` is not quantised by any
    recipe.
    """

    def __init__(self, config: TextEncoderConfig, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.wi_0 = Linear(config.d_model, config.d_ff, recipe, dtype, bias=False)
        self.wi_1 = Linear(config.d_model, config.d_ff, recipe, dtype, bias=False)
        self.wo = Linear(config.d_ff, config.d_model, BF16(), dtype, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # In fp32 it costs nothing and rounds once; a bf16 GELU rounds after each of its steps.
        gate = F.gelu(self.wi_0(x).float(), approximate="tanh").to(x.dtype)
        return cast(Tensor, self.wo(gate * self.wi_1(x)))


class AttentionLayer(nn.Module):
    def __init__(self, config: TextEncoderConfig, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = config.eps
        self.SelfAttention = SelfAttention(config, recipe, dtype)
        self.layer_norm = Norm(config.d_model, dtype)

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        normed = rms_norm(x, self.layer_norm.weight, self.eps)
        return x + cast(Tensor, self.SelfAttention(normed, buckets))


class FeedForwardLayer(nn.Module):
    def __init__(self, config: TextEncoderConfig, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = config.eps
        self.DenseReluDense = FeedForward(config, recipe, dtype)
        self.layer_norm = Norm(config.d_model, dtype)

    def forward(self, x: Tensor) -> Tensor:
        normed = rms_norm(x, self.layer_norm.weight, self.eps)
        return x + cast(Tensor, self.DenseReluDense(normed))


class Block(nn.Module):
    """One encoder block: hidden [1, L, d_model], buckets [L, L] int32 -> hidden."""

    def __init__(
        self,
        config: TextEncoderConfig,
        recipe: Recipe,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [AttentionLayer(config, recipe, dtype), FeedForwardLayer(config, recipe, dtype)]
        )

    def forward(self, hidden: Tensor, buckets: Tensor) -> Tensor:
        return cast(Tensor, self.layer[1](self.layer[0](hidden, buckets)))


class Buckets(nn.Module):
    """The buckets for the length of the input; the graph's first stage.

    The table is a constant that is cut to size: TensorRT takes a slice of dynamic length, and
    nothing needs to be computed.
    """

    def __init__(self, text_length: int) -> None:
        super().__init__()
        self.relative_buckets: Tensor
        self.register_buffer(
            "relative_buckets", torch.empty(text_length, text_length, dtype=torch.int32)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        length = embeddings.shape[1]
        return self.relative_buckets[:length, :length]


class FinalNorm(nn.Module):
    """The norm behind the last block; the graph's last stage."""

    def __init__(self, config: TextEncoderConfig, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.eps = config.eps
        self.final_layer_norm = Norm(config.d_model, dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.final_layer_norm.weight, self.eps)


class Encoder(FinalNorm):
    """All blocks and the final norm, under the names that they have below ``encoder.``."""

    def __init__(self, config: TextEncoderConfig, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__(config, dtype)
        self.block = nn.ModuleList([Block(config, recipe, dtype) for _ in range(config.num_layers)])


class UMT5Encoder(nn.Module):
    """The whole encoder, for comparisons; the export traces its stages one by one.

    Args:
        config: shape of the encoder.
        recipe: of the linears.
        dtype: of weights and activations; with fp32 nothing is rounded.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        recipe: Recipe,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.config = config
        self.shared = Table(config.vocab_size, config.d_model, dtype)
        self.encoder = Encoder(config, recipe, dtype)

    def encode(self, embeddings: Tensor) -> Tensor:
        """Rows of the embedding table [1, L, d_model] to hidden states like them."""
        buckets = relative_buckets(self.config, embeddings.shape[1])
        hidden = embeddings
        for block in self.encoder.block:
            hidden = block(hidden, buckets)
        return cast(Tensor, self.encoder(hidden))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Tokens [1, L] of a prompt, at its true length, to hidden states [1, L, d_model]."""
        return self.encode(F.embedding(token_ids, self.shared.weight))
