"""Configuration files of a checkpoint, turned into the dataclasses of `fastwan.config`.

What the export cannot represent is refused in words here, before any weight is read.
"""

from __future__ import annotations

from pathlib import Path

from fastwan.config import (
    VAE_TEMPORAL,
    DecoderConfig,
    DiTConfig,
    TextEncoderConfig,
)
from fastwan.errors import BadInput, listed
from fastwan.export.checkpoint.config_file import ConfigFile
from fastwan.export.checkpoint.store import TensorStore

_TRANSFORMER_FIELDS = frozenset(
    (
        "patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels",
        "text_dim", "freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "qk_norm", "eps",
        "image_dim", "added_kv_proj_dim", "rope_max_seq_len", "pos_embed_seq_len",
        "quantization_config",
    )
)  # fmt: skip
"""Arguments of diffusers' ``WanTransformer3DModel``, all of which are read here."""


def read_dit_config(path: Path, notes: list[str]) -> DiTConfig:
    """Read ``transformer/config.json`` of diffusers' ``WanTransformer3DModel``.

    Args:
        notes: told of fields that are set and that diffusers' class does not have.

    Raises:
        BadInput: a text-to-video Wan 2.1 transformer with heads of 128 it is not.
    """
    file = ConfigFile(path)
    file.require("_class_name", ("WanTransformer3DModel",), "WanTransformer3DModel")
    file.require("cross_attn_norm", (True,), True)
    file.require("qk_norm", ("rms_norm_across_heads",), "rms_norm_across_heads")
    for name in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len", "quantization_config"):
        file.require(name, (None,), None)
    file.require("patch_size", ([1, 2, 2],), [1, 2, 2])
    file.require("attention_head_dim", (128,), 128)
    file.require("in_channels", (16,), 16)
    file.require("out_channels", (16, None), 16)
    file.require("rope_max_seq_len", (1024,), 1024)
    foreign = [
        name
        for name, value in file.fields.items()
        if name not in _TRANSFORMER_FIELDS and not name.startswith("_") and value
    ]
    if foreign:
        notes.append(
            f"{path.parent.name}/{path.name} sets {listed(foreign)}, which "
            "WanTransformer3DModel does not have: not used"
        )
    return DiTConfig(
        num_layers=file.integer("num_layers", 256),
        num_heads=file.integer("num_attention_heads", 128),
        ffn_dim=file.integer("ffn_dim", 1 << 17),
        text_dim=file.integer("text_dim", 1 << 16, 4096),
        freq_dim=_even(file, "freq_dim", 1 << 13, 256),
        eps=file.number("eps", 1e-6),
    )


def read_text_encoder_config(path: Path) -> tuple[TextEncoderConfig, int | None]:
    """Read ``text_encoder/config.json`` of transformers' ``UMT5EncoderModel``.

    Returns:
        The configuration, and the token that ends a prompt where it names one.

    Raises:
        BadInput: not a UMT5 encoder with a gated tanh-GELU.
    """
    file = ConfigFile(path)
    file.require("model_type", ("umt5",), None)
    file.require("feed_forward_proj", ("gated-gelu",), "gated-gelu")
    file.require("dense_act_fn", ("gelu_new",), "gelu_new")
    file.require("is_gated_act", (True,), True)
    file.require("quantization_config", (None,), None)
    buckets = _even(file, "relative_attention_num_buckets", 1 << 10, 32)
    if buckets < 4:
        raise file.bad(f"relative_attention_num_buckets is {buckets}, expected 4 or more")
    end = file.fields.get("eos_token_id")
    config = TextEncoderConfig(
        vocab_size=file.integer("vocab_size", 1 << 22),
        d_model=file.integer("d_model", 1 << 16),
        d_kv=file.integer("d_kv", 1 << 10),
        d_ff=file.integer("d_ff", 1 << 18),
        num_layers=file.integer("num_layers", 256),
        num_heads=file.integer("num_heads", 1 << 10),
        num_buckets=buckets,
        # Half of a sign's buckets are for one distance each; the others need distances beyond.
        max_distance=file.integer(
            "relative_attention_max_distance", 1 << 16, 128, least=buckets // 4 + 1
        ),
        eps=file.number("layer_norm_epsilon", 1e-6),
    )
    return config, end if type(end) is int else None


def _even(file: ConfigFile, name: str, most: int, default: int) -> int:
    value = file.integer(name, most, default, least=2)
    if value % 2:
        raise file.bad(f"{name} is {value}, expected an even number")
    return value


def infer_decoder_config(store: TensorStore) -> DecoderConfig:
    """Shape of a TAEHV decoder, from the shapes of its tensors.

    Raises:
        BadInput: a tensor that tells the shape is missing, or the file belongs to another
            model than Wan 2.1 (``taew2_2``, ``taehv1_5`` and ``taeltx`` differ).
    """
    first = _conv_shape(store, "decoder.1.weight")
    last = _conv_shape(store, "decoder.22.weight")
    if first[1] != 16 or last[0] != 3:
        raise BadInput(
            f"decoder takes {first[1]} latent channels and gives {last[0]}, not 16 and 3",
            where=store.where("decoder.1.weight"),
            fix="give the weights for Wan 2.1, taew2_1",
        )
    levels = [_conv_shape(store, f"decoder.{8 + 6 * level}.weight") for level in range(3)]
    growths: list[int] = []
    for level, shape in enumerate(levels):
        grown = _conv_shape(store, f"decoder.{7 + 6 * level}.conv.weight")[0]
        growths.append(grown // max(shape[1], 1))
    if growths[0] * growths[1] * growths[2] != VAE_TEMPORAL:
        raise BadInput(
            f"decoder makes {growths} frames of one by level, a latent of Wan 2.1 holds "
            f"{VAE_TEMPORAL}",
            where=store.where("decoder.7.conv.weight"),
            fix="give the weights for Wan 2.1, taew2_1",
        )
    return DecoderConfig(
        channels=(first[0], levels[1][1], levels[2][1], last[1]),
        latent_channels=first[1],
        image_channels=last[0],
        time_growth=(growths[0], growths[1], growths[2]),
    )


def _conv_shape(store: TensorStore, name: str) -> tuple[int, ...]:
    shape = store.shape(name)
    if len(shape) != 4 or 0 in shape:
        raise BadInput(f"{list(shape)} is no convolution's shape", where=store.where(name))
    return shape
