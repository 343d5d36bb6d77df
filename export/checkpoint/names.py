"""Which tensors a Wan transformer, a UMT5 encoder and a TAEHV decoder have, and what shape.

Canonical names are those of diffusers' ``WanTransformer3DModel``, transformers'
``UMT5EncoderModel`` and ``taehv.py``. FastVideo saves some transformers under its own names
(``param_names_mapping`` of its WanVideo configuration, read backwards here), and Wan publishes its
own (as ``convert_wan_transformer_to_diffusers`` of diffusers reads them), which ComfyUI keeps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastwan.config import DecoderConfig, DiTConfig, TextEncoderConfig
from fastwan.errors import BadInput, listed
from fastwan.export.checkpoint.foreign import explain_tensors
from fastwan.export.checkpoint.store import FLOAT_DTYPES, TensorStore

Shapes = dict[str, tuple[int, ...]]

# What training wrappers and whole-pipeline files put before the transformer's own names.
_PREFIXES = (
    "model.", "diffusion_model.", "transformer.", "generator.", "module.", "_orig_mod.",
)  # fmt: skip

_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^patch_embedding\.proj\.", "patch_embedding."),
        (r"^(condition_embedder\.text_embedder)\.fc_in\.", r"\1.linear_1."),
        (r"^(condition_embedder\.text_embedder)\.fc_out\.", r"\1.linear_2."),
        (r"^(condition_embedder\.time_embedder)\.mlp\.fc_in\.", r"\1.linear_1."),
        (r"^(condition_embedder\.time_embedder)\.mlp\.fc_out\.", r"\1.linear_2."),
        (r"^condition_embedder\.time_modulation\.linear\.", "condition_embedder.time_proj."),
        (r"^(blocks\.\d+)\.(to_[qkv]|norm_[qk])\.", r"\1.attn1.\2."),
        (r"^(blocks\.\d+)\.to_out\.(weight|bias)$", r"\1.attn1.to_out.0.\2"),
        (r"^(blocks\.\d+)\.attn2\.to_out\.(weight|bias)$", r"\1.attn2.to_out.0.\2"),
        (r"^(blocks\.\d+)\.ffn\.fc_in\.", r"\1.ffn.net.0.proj."),
        (r"^(blocks\.\d+)\.ffn\.fc_out\.", r"\1.ffn.net.2."),
        (r"^(blocks\.\d+)\.self_attn_residual_norm\.norm\.", r"\1.norm2."),
        (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
        (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
        (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
        (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
        (r"^time_projection\.1\.", "condition_embedder.time_proj."),
        (r"^(blocks\.\d+)\.self_attn\.([qkv])\.", r"\1.attn1.to_\2."),
        (r"^(blocks\.\d+)\.self_attn\.o\.", r"\1.attn1.to_out.0."),
        (r"^(blocks\.\d+)\.self_attn\.norm_([qk])\.", r"\1.attn1.norm_\2."),
        (r"^(blocks\.\d+)\.cross_attn\.([qkv])\.", r"\1.attn2.to_\2."),
        (r"^(blocks\.\d+)\.cross_attn\.o\.", r"\1.attn2.to_out.0."),
        (r"^(blocks\.\d+)\.cross_attn\.norm_([qk])\.", r"\1.attn2.norm_\2."),
        (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
        (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
        # Wan's second norm has no weights; the one between the attentions is its third.
        (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
        (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
        (r"^head\.modulation$", "scale_shift_table"),
        (r"^head\.head\.", "proj_out."),
    )
)


def canonical_dit_name(stored: str) -> str:
    """The diffusers name of a transformer tensor stored under diffusers', FastVideo's or Wan's.

    An unknown name comes back as it is, less the prefix; `check_tensors` refuses it.
    """
    name = stored
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
        name = name[len(prefix) :]
    for pattern, replacement in _RENAMES:
        name, count = pattern.subn(replacement, name)
        if count:
            break
    return name


def expected_dit_tensors(config: DiTConfig) -> Shapes:
    """Name and shape of every tensor of a transformer, in diffusers' order."""
    width, ffn = config.width, config.ffn_dim
    patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    shapes: Shapes = {"scale_shift_table": (1, 2, width)}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    shapes["patch_embedding.weight"] = (width, config.in_channels, *config.patch_size)
    shapes["patch_embedding.bias"] = (width,)
    linear("condition_embedder.time_embedder.linear_1", width, config.freq_dim)
    linear("condition_embedder.time_embedder.linear_2", width, width)
    linear("condition_embedder.time_proj", 6 * width, width)
    linear("condition_embedder.text_embedder.linear_1", width, config.text_dim)
    linear("condition_embedder.text_embedder.linear_2", width, width)
    for index in range(config.num_layers):
        block = f"blocks.{index}"
        shapes[f"{block}.scale_shift_table"] = (1, 6, width)
        for attention in ("attn1", "attn2"):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                linear(f"{block}.{attention}.{projection}", width, width)
            shapes[f"{block}.{attention}.norm_q.weight"] = (width,)
            shapes[f"{block}.{attention}.norm_k.weight"] = (width,)
        shapes[f"{block}.norm2.weight"] = (width,)
        shapes[f"{block}.norm2.bias"] = (width,)
        linear(f"{block}.ffn.net.0.proj", ffn, width)
        linear(f"{block}.ffn.net.2", width, ffn)
    linear("proj_out", patch * config.out_channels, width)
    return shapes


def expected_text_encoder_tensors(config: TextEncoderConfig) -> Shapes:
    """Name and shape of every tensor of a UMT5 encoder; the embedding is ``shared.weight``."""
    inner = config.num_heads * config.d_kv
    shapes: Shapes = {"shared.weight": (config.vocab_size, config.d_model)}
    for index in range(config.num_layers):
        attention = f"encoder.block.{index}.layer.0"
        feed = f"encoder.block.{index}.layer.1"
        for projection in ("q", "k", "v"):
            shapes[f"{attention}.SelfAttention.{projection}.weight"] = (inner, config.d_model)
        shapes[f"{attention}.SelfAttention.o.weight"] = (config.d_model, inner)
        # Unlike T5, every block of UMT5 has its own position bias.
        shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (
            config.num_buckets,
            config.num_heads,
        )
        shapes[f"{attention}.layer_norm.weight"] = (config.d_model,)
        for projection in ("wi_0", "wi_1"):
            shapes[f"{feed}.DenseReluDense.{projection}.weight"] = (config.d_ff, config.d_model)
        shapes[f"{feed}.DenseReluDense.wo.weight"] = (config.d_model, config.d_ff)
        shapes[f"{feed}.layer_norm.weight"] = (config.d_model,)
    shapes["encoder.final_layer_norm.weight"] = (config.d_model,)
    return shapes


def expected_decoder_tensors(config: DecoderConfig) -> Shapes:
    """Name and shape of every ``decoder.*`` tensor of a TAEHV file.

    The numbers are positions in the decoder's ``nn.Sequential``: clamp 0, convolution 1, ReLU 2;
    then a level of three memory blocks, upsampling, time growth and a convolution takes six; the
    last two are ReLU and the convolution to the image.
    """
    channels = config.channels
    shapes: Shapes = {}

    def conv(name: str, outputs: int, inputs: int, size: int = 3, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, size, size)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    conv("decoder.1", channels[0], config.latent_channels)
    for level in range(3):
        first, width = 3 + 6 * level, channels[level]
        for block in range(first, first + 3):
            conv(f"decoder.{block}.conv.0", width, 2 * width)
            conv(f"decoder.{block}.conv.2", width, width)
            conv(f"decoder.{block}.conv.4", width, width)
        grown = width * config.time_growth[level]
        conv(f"decoder.{first + 4}.conv", grown, width, size=1, bias=False)
        conv(f"decoder.{first + 5}", channels[level + 1], width, bias=False)
    conv("decoder.22", config.image_channels, channels[3])
    return shapes


def check_tensors(store: TensorStore, expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Refuse a store that is not exactly `expected`, in fp32, fp16 or bf16.

    Args:
        what: the component's name for the message, e.g. ``transformer``.

    Raises:
        BadInput: unknown, missing or misshapen tensors, or of another dtype; the message names
            the first ones and counts the rest.
    """
    where = str(store.files[0].parent) if len(store) else what
    unknown = [name for name in store.names() if name not in expected]
    if unknown:
        explained = explain_tensors(unknown, map(store.dtype, store.names()))
        kind, fix = explained or ("", "")
        raise BadInput(
            f"{what} holds {kind}: {listed(unknown)}"
            if kind
            else f"{what} has unknown tensor {listed(unknown)}",
            where=where,
            fix=fix,
        )
    missing = [name for name in expected if name not in store]
    if missing:
        raise BadInput(f"{what} has missing tensor {listed(missing)}", where=where)
    shapes = [n for n in expected if store.shape(n) != tuple(expected[n])]
    if shapes:
        first = shapes[0]
        raise BadInput(
            f"{what} tensor {listed(shapes)} has shape {list(store.shape(first))}, "
            f"expected {list(expected[first])}",
            where=store.where(first),
        )
    dtypes = [name for name in expected if store.dtype(name) not in FLOAT_DTYPES]
    if dtypes:
        raise BadInput(
            f"{what} tensor {listed(dtypes)} has dtype {_dtype(store, dtypes[0])}",
            where=store.where(dtypes[0]),
            fix="give bfloat16 (bf16), float16 or float32 weights of the same model",
        )


def _dtype(store: TensorStore, name: str) -> str:
    return str(store.dtype(name)).removeprefix("torch.")
