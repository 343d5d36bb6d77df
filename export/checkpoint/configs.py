"""Configuration files of a checkpoint, turned into the dataclasses of `fastwan.config`.

What the export cannot represent is refused in words here, before any weight is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastwan.config import (
    VAE_TEMPORAL,
    DecoderConfig,
    DiTConfig,
    TextEncoderConfig,
    VideoShape,
)
from fastwan.errors import BadInput
from fastwan.export.checkpoint.store import TensorStore
from fastwan.strict_json import read_json

SHAPE_KEY = "_fastwan_shape"
"""Key of ``model_index.json`` under which a checkpoint brings its own default video shape."""

PipelineClass = Literal["WanPipeline", "WanDMDPipeline"]
SAMPLERS: dict[PipelineClass, str] = {"WanPipeline": "unipc", "WanDMDPipeline": "dmd"}
"""Sampler that a pipeline class of ``model_index.json`` runs."""

_MAX_CONFIG_BYTES = 1_000_000


class ConfigFile:
    """A JSON object on disk with typed getters, whose errors name file and field."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, Any] = read_json(path, max_bytes=_MAX_CONFIG_BYTES)

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive whole number; without a default the field has to be there."""
        value = self.fields.get(name, default)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self.bad(f"{name} is {_shown(value)}, expected a positive whole number")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise self.bad(f"{name} is {_shown(value)}, expected a number between 0 and 1")
        return float(value)

    def require(self, name: str, allowed: tuple[object, ...], default: object) -> None:
        """Refuse a field that has none of the `allowed` values."""
        value = self.fields.get(name, default)
        if not any(type(value) is type(item) and value == item for item in allowed):
            expected = " or ".join(_shown(item) for item in allowed)
            raise self.bad(f"{name} {_shown(value)} is not supported, expected {expected}")

    def bad(self, what: str) -> BadInput:
        return BadInput(what, where=str(self.path))


def _shown(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return ascii(value)[:80]


def read_dit_config(path: Path) -> DiTConfig:
    """Read ``transformer/config.json`` of diffusers' ``WanTransformer3DModel``.

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
    return DiTConfig(
        num_layers=file.integer("num_layers"),
        num_heads=file.integer("num_attention_heads"),
        ffn_dim=file.integer("ffn_dim"),
        text_dim=file.integer("text_dim", 4096),
        freq_dim=file.integer("freq_dim", 256),
        eps=file.number("eps", 1e-6),
    )


def read_text_encoder_config(path: Path) -> TextEncoderConfig:
    """Read ``text_encoder/config.json`` of transformers' ``UMT5EncoderModel``.

    Raises:
        BadInput: not a UMT5 encoder with a gated tanh-GELU.
    """
    file = ConfigFile(path)
    file.require("model_type", ("umt5",), None)
    file.require("feed_forward_proj", ("gated-gelu",), "gated-gelu")
    file.require("dense_act_fn", ("gelu_new",), "gelu_new")
    file.require("is_gated_act", (True,), True)
    file.require("quantization_config", (None,), None)
    return TextEncoderConfig(
        vocab_size=file.integer("vocab_size"),
        d_model=file.integer("d_model"),
        d_kv=file.integer("d_kv"),
        d_ff=file.integer("d_ff"),
        num_layers=file.integer("num_layers"),
        num_heads=file.integer("num_heads"),
        num_buckets=file.integer("relative_attention_num_buckets", 32),
        max_distance=file.integer("relative_attention_max_distance", 128),
        eps=file.number("layer_norm_epsilon", 1e-6),
    )


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


def read_model_index(path: Path) -> tuple[PipelineClass, VideoShape, dict[str, Any]]:
    """Pipeline class, default video shape and all fields of ``model_index.json``.

    Raises:
        BadInput: another pipeline than Wan text-to-video, or a video shape that is none.
    """
    file = ConfigFile(path)
    name = file.fields.get("_class_name")
    pipeline: PipelineClass | None = next((item for item in SAMPLERS if item == name), None)
    if pipeline is None:
        raise file.bad(
            f"pipeline {_shown(name)} is not supported, expected " + " or ".join(SAMPLERS)
        )
    shape = file.fields.get(SHAPE_KEY)
    if shape is None:
        return pipeline, VideoShape(), file.fields
    if (
        not isinstance(shape, dict)
        or shape.keys() != {"height", "width", "num_frames"}
        or any(type(value) is not int for value in shape.values())
    ):
        raise file.bad(f"{SHAPE_KEY} must hold height, width and num_frames")
    try:
        return pipeline, VideoShape(**shape), file.fields
    except BadInput as error:
        raise file.bad(f"{SHAPE_KEY}: {error.what}") from None
