"""The Wan 2.1 text-to-video transformer as an export-friendly module.

Five stages, each traced on its own and composed by `fastwan.export.dit_graph`: what depends on the
prompt alone (`TextEmbed`, `TextKV`), what depends on the latents and the timestep (`Embed`), the
transformer block, and `Head`. Tensor names are diffusers' own, except where matrices are merged
(`attn1.qkv`); `fastwan.export.weights` maps them.

Precision follows the published run: bf16 activations; norms, modulation and gates in fp32, rounded
to bf16 afterwards. Built with ``dtype=torch.float32`` it is an fp32 model without roundings.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastwan.config import DiTConfig, VideoShape
from fastwan.export import ops  # noqa: F401  (registers torch.ops.fastwan.sage_attention3)
from fastwan.export.attentions import EXACT, Form
from fastwan.export.models.layers import Dense, Linear, Norm, layer_norm, rms_norm, rope_tables
from fastwan.export.recipes import Recipe


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, H * D] -> [B, H, L, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


class TextEmbed(nn.Module):
    """Prompt embeddings [B, 512, text_dim] -> context [B, 512, C]; zero rows take part."""

    def __init__(self, config: DiTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear_1 = Dense(config.text_dim, config.width, dtype)
        self.linear_2 = Dense(config.width, config.width, dtype)

    def forward(self, encoder_hidden_states: Tensor) -> Tensor:
        hidden = F.gelu(self.linear_1(encoder_hidden_states).float(), approximate="tanh")
        return cast(Tensor, self.linear_2(hidden.to(encoder_hidden_states.dtype)))


class TextKV(nn.Module):
    """Cross-attention keys and values of one block from the context.

    The heads of v are split here, once a prompt, so that no step has to. Those of k would take a
    second kernel after its norm and save none, since the attention wants it transposed anyway.

    Returns:
        k [B, 512, C] and v [B, H, 512, D].
    """

    def __init__(self, config: DiTConfig, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.to_k = Linear(config.width, config.width, recipe, dtype)
        self.to_v = Linear(config.width, config.width, recipe, dtype)
        self.norm_k = Norm(config.width, dtype)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        k = rms_norm(self.to_k(context), self.norm_k.weight, self.config.eps)
        return k, split_heads(self.to_v(context), self.config.num_heads)


class Embed(nn.Module):
    """Latents and timestep -> tokens and modulation.

    Args of forward:
        latents: [B, 16, T, H, W] in the model's dtype.
        timestep: [B] fp32.

    Returns:
        hidden [B, padded_tokens, C] (rows past the last token come from zero patches),
        temb [B, C] in the model's dtype, timestep_proj [B, 6, C] fp32.
    """

    def __init__(self, config: DiTConfig, shape: VideoShape, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.shape, self.dtype = config, shape, dtype
        self.frequency: Tensor
        self.register_buffer("frequency", torch.empty(config.freq_dim // 2))
        self.patch_embedding = Dense(config.in_channels * 4, config.width, dtype)
        self.time_linear_1 = Dense(config.freq_dim, config.width, dtype)
        self.time_linear_2 = Dense(config.width, config.width, dtype)
        self.time_proj = Dense(config.width, 6 * config.width, dtype)

    def forward(self, latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.tokens(latents), *self.time_tables(timestep)

    def tokens(self, latents: Tensor) -> Tensor:
        """hidden, which follows from the latents alone."""
        frames, rows, columns = self.shape.patches
        batch, channels = latents.shape[0], self.config.in_channels
        patches = latents.reshape(batch, channels, frames, rows, 2, columns, 2)
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, -1, channels * 4)
        patches = F.pad(patches, (0, 0, 0, self.shape.padded_tokens - self.shape.num_tokens))
        return cast(Tensor, self.patch_embedding(patches))

    def time_tables(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """temb and timestep_proj, which follow from the timestep alone."""
        angle = timestep[:, None] * self.frequency[None, :]
        embedding = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.dtype)
        temb = self.time_linear_2(F.silu(self.time_linear_1(embedding)))
        projected = self.time_proj(F.silu(temb)).float()
        return temb, projected.reshape(timestep.shape[0], 6, self.config.width)


class SelfAttention(nn.Module):
    """Merged qkv GEMM, the attention node, output GEMM.

    The three weights keep their own global scales: the merged weight has global scale 1.0 and the
    node multiplies each third of the GEMM's output by its entry of `qkv_scale`. Equal global
    scales are what lets the builder merge the GEMMs.

    Attributes:
        form: what is computed in place of the node; None calls the operator that becomes it.
    """

    def __init__(
        self, config: DiTConfig, num_tokens: int, recipe: Recipe, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config, self.num_tokens = config, num_tokens
        self.form: Form | None = None
        self.qkv_scale: Tensor
        self.qkv_bias: Tensor
        self.qkv = Linear(
            config.width, 3 * config.width, recipe, dtype, bias=False, tokens=num_tokens
        )
        self.register_buffer("qkv_scale", torch.ones(3))
        self.register_buffer("qkv_bias", torch.empty(3 * config.width, dtype=dtype))
        self.norm_q = Norm(config.width, dtype)
        self.norm_k = Norm(config.width, dtype)
        self.to_out = Linear(config.width, config.width, recipe, dtype, tokens=num_tokens)

    def forward(self, x: Tensor, rope_cos: Tensor, rope_sin: Tensor) -> Tensor:
        config = self.config
        norms = self.norm_q.weight, self.norm_k.weight
        tensors = (self.qkv(x), self.qkv_scale, self.qkv_bias, *norms, rope_cos, rope_sin)
        scale = config.head_dim**-0.5
        if self.form is None:
            out = torch.ops.fastwan.sage_attention3(
                *tensors, config.num_heads, self.num_tokens, config.eps, scale, False
            )
        else:
            out = self.form.compute(
                *tensors,
                num_heads=config.num_heads,
                num_tokens=self.num_tokens,
                eps=config.eps,
                softmax_scale=scale,
            )
        return cast(Tensor, self.to_out(out))


class CrossAttention(nn.Module):
    """Attention of the tokens to the prompt, in the model's dtype without a mask.

    k and v as `TextKV` returns them.
    """

    def __init__(
        self, config: DiTConfig, num_tokens: int, recipe: Recipe, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config = config
        self.to_q = Linear(config.width, config.width, recipe, dtype, tokens=num_tokens)
        self.norm_q = Norm(config.width, dtype)
        self.to_out = Linear(config.width, config.width, recipe, dtype, tokens=num_tokens)

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rms_norm(self.to_q(x), self.norm_q.weight, self.config.eps)
        q, k = split_heads(q, self.config.num_heads), split_heads(k, self.config.num_heads)
        out = torch.onnx.ops.attention(q, k, v, scale=self.config.head_dim**-0.5)[0]
        return cast(Tensor, self.to_out(out.transpose(1, 2).reshape(x.shape)))


class FeedForward(nn.Module):
    """Linear, tanh gelu in fp32, linear."""

    def __init__(
        self, config: DiTConfig, num_tokens: int, recipe: Recipe, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.ffn_dim, recipe, dtype, tokens=num_tokens)
        self.fc2 = Linear(config.ffn_dim, config.width, recipe, dtype, tokens=num_tokens)

    def forward(self, x: Tensor) -> Tensor:
        # A gelu in bf16 rounds after each of its parts when it is compiled; one in fp32 is free.
        hidden = F.gelu(self.fc1(x).float(), approximate="tanh").to(x.dtype)
        return cast(Tensor, self.fc2(hidden))


class Block(nn.Module):
    """One transformer block over hidden [B, L, C]; k and v as of `TextKV`.

    `scale_shift_table` [1, 6, C] and the weights of norm2 are held in fp32, in which they are
    used, so that no engine casts them again each step.
    """

    def __init__(
        self, config: DiTConfig, num_tokens: int, recipe: Recipe, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.eps = config.eps
        self.scale_shift_table: Tensor
        self.register_buffer("scale_shift_table", torch.empty(1, 6, config.width))
        self.attn1 = SelfAttention(config, num_tokens, recipe, dtype)
        self.norm2 = Norm(config.width, torch.float32, bias=True)
        self.attn2 = CrossAttention(config, num_tokens, recipe, dtype)
        self.ffn = FeedForward(config, num_tokens, recipe, dtype)

    def forward(
        self,
        hidden: Tensor,
        timestep_proj: Tensor,
        k: Tensor,
        v: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> Tensor:
        dtype = hidden.dtype
        modulation = self.scale_shift_table + timestep_proj
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (
            modulation[:, index : index + 1] for index in range(6)
        )
        x = (layer_norm(hidden, self.eps) * (1 + scale) + shift).to(dtype)
        attended = self.attn1(x, rope_cos, rope_sin)
        hidden = hidden + (attended.float() * gate).to(dtype)

        x = (layer_norm(hidden, self.eps) * self.norm2.weight + self.norm2.bias).to(dtype)
        hidden = hidden + self.attn2(x, k, v)

        x = (layer_norm(hidden, self.eps) * (1 + ff_scale) + ff_shift).to(dtype)
        return cast(Tensor, hidden + (self.ffn(x).float() * ff_gate).to(dtype))


class Head(nn.Module):
    """Final norm, modulation, projection and unpatchify -> velocity [B, 16, T, H, W]."""

    def __init__(self, config: DiTConfig, shape: VideoShape, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.scale_shift_table: Tensor
        self.register_buffer("scale_shift_table", torch.empty(1, 2, config.width))
        self.proj_out = Dense(config.width, config.out_channels * 4, dtype)

    def forward(self, hidden: Tensor, temb: Tensor) -> Tensor:
        modulation = self.scale_shift_table + temb.float()[:, None]
        shift, scale = modulation[:, 0:1], modulation[:, 1:2]
        x = (layer_norm(hidden, self.config.eps) * (1 + scale) + shift).to(hidden.dtype)
        x = self.proj_out(x)[:, : self.shape.num_tokens]
        frames, rows, columns = self.shape.patches
        x = x.reshape(x.shape[0], frames, rows, columns, 2, 2, self.config.out_channels)
        x = x.permute(0, 6, 1, 2, 4, 3, 5)
        shape = (x.shape[0], self.config.out_channels, frames, 2 * rows, 2 * columns)
        return cast(Tensor, x.reshape(shape))


class WanDiT(nn.Module):
    """The whole transformer.

    Args:
        config: widths and depths.
        shape: video shape; token counts and rotary tables follow from it.
        recipe: of the ten linears of a block.
        dtype: bf16 (the numerics of the model) or fp32 (no roundings; exact attention).
    """

    def __init__(
        self,
        config: DiTConfig,
        shape: VideoShape,
        recipe: Recipe,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.config, self.shape, self.dtype = config, shape, dtype
        self.text_embed = TextEmbed(config, dtype)
        self.embed = Embed(config, shape, dtype)
        layers = range(config.num_layers)
        self.text_kv = nn.ModuleList(TextKV(config, recipe, dtype) for _ in layers)
        self.blocks = nn.ModuleList(Block(config, shape.num_tokens, recipe, dtype) for _ in layers)
        self.head = Head(config, shape, dtype)
        self.set_quantizers(activations=True, attention=EXACT if dtype == torch.float32 else None)

    def set_quantizers(self, *, activations: bool, attention: Form | None) -> WanDiT:
        """Switch the activation quantiser of the linears, and what attention computes.

        Args:
            attention: None for the operator of the node, FP4 in bf16.

        Returns:
            self.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.quantize_activation = activations
            if isinstance(module, SelfAttention):
                module.form = attention
        return self

    def forward(self, latents: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Velocity [B, 16, T, H, W] from latents of that shape, timestep [B], text [B, 512, D]."""
        cos, sin = rope_tables(self.shape, self.config.head_dim)
        hidden, temb, timestep_proj = self.embed(latents.to(self.dtype), timestep.float())
        context = self.text_embed(encoder_hidden_states.to(self.dtype))
        for text_kv, block in zip(self.text_kv, self.blocks, strict=True):
            k, v = text_kv(context)
            hidden = block(hidden, timestep_proj, k, v, cos, sin)
        return cast(Tensor, self.head(hidden, temb))
