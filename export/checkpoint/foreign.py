"""Names for what other tools write, and the way from there to what is read here.

Nothing here reads a weight: file names and tensor names tell enough to say what was found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from fastwan.errors import BadInput, listed
from fastwan.strict_json import read_json

WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|distcp|msgpack|h5|onnx|sft)$", re.IGNORECASE
)
"""Files of weights, of any tool."""

LORA = re.compile(r"(?<![a-z])lora|^adapter_(config|model)\b", re.IGNORECASE)
"""Files and folders of LoRA adapters, as diffusers, peft and people name them."""

_BF16 = "give the bfloat16 (bf16) or fp32 weights of the same model"
_MERGE = (
    "merge them into the weights (diffusers: fuse_lora(), peft: merge_and_unload()) and save those"
)
_FOLDER = "give the folder of a diffusers pipeline, with model_index.json in it"
_TO_SAFETENSORS = "load it where you trust it and save it with save_pretrained, as safetensors"


class Sign(NamedTuple):
    """What a name gives away.

    Attributes:
        pattern: searched in the name.
        what: completes "this is ..." or "holds ...".
        fix: the way out.
    """

    pattern: re.Pattern[str]
    what: str
    fix: str


def _signs(*rows: tuple[str, str, str]) -> tuple[Sign, ...]:
    return tuple(Sign(re.compile(pattern, re.IGNORECASE), what, fix) for pattern, what, fix in rows)


_TENSORS = _signs(
    (
        r"lora_|\.base_layer\.|\.lora\.|hada_w|lokr_w|dora_scale|\.diff(_b)?$|modules_to_save"
        r"|_lora\.|\.alpha$",
        "LoRA adapters that are not merged",
        _MERGE,
    ),
    (
        r"scaled_fp8|\.(scale_weight|scale_input|comfy_quant)$",
        "fp8-scaled weights, as ComfyUI has them",
        _BF16,
    ),
    (
        r"to_gate_compress|gate_compress|\.proj_l\.|sparse",
        "gates of sparse attention (VSA), which this version does not compute",
        "give a model that was trained with full attention, such as FastWan-QAD-1.3B",
    ),
    (
        r"\.(absmax|quant_map|nested_\w+|quant_state\..*|SCB|weight_format|qweight|qzeros|scales"
        r"|wscales|wzeros|g_idx|weight_packed|weight_shape|(weight|input)_scale(_2|_inv)?"
        r"|(weight|input)_global_scale|smooth\w*|proj_(down|up)|_?(amax|pre_quant_scale))$"
        r"|_quantizer\.",
        "weights that are quantised already",
        _BF16,
    ),
    (
        r"img_emb|image_embedder|add_[kv]_proj|norm_added_k|[kv]_img",
        "an image-to-video transformer",
        "give a text-to-video model such as FastWan-QAD-1.3B",
    ),
    (
        r"vace_|control_adapter|motion_encoder|face_adapter|ref_conv|audio_",
        "a transformer with control inputs (VACE, Fun, Animate or S2V)",
        "give a text-to-video model such as FastWan-QAD-1.3B",
    ),
    (
        r"^(text_encoders|first_stage_model|cond_stage_model|conditioner|vae)\.",
        "a whole pipeline in one file, as ComfyUI has it",
        "give the transformer's own file, or the folder of a diffusers pipeline",
    ),
    (
        r"optimizer|(real|fake)_score|critic|_ema\.|^ema",
        "the state of a training",
        "save the generator alone with save_pretrained",
    ),
    (
        r"^token_embedding\.|^blocks\.\d+\.attn\.|pos_embedding\.embedding",
        "a text encoder under Wan's own names",
        "give text_encoder/ of the -Diffusers repository of the same model",
    ),
)

_FILES = _signs(
    (r"\.gguf$", "GGUF (quantised, for llama.cpp and ComfyUI)", _BF16),
    (
        r"\.distcp$|^\.metadata$|^distributed_checkpoint$",
        "a distributed checkpoint of torch (DCP)",
        "convert it with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch`, load "
        "that into diffusers' WanTransformer3DModel and call save_pretrained",
    ),
    (LORA.pattern, "LoRA adapters", _MERGE),
    (
        r"-\d{5}-of-\d{5}\.safetensors$",
        "shards without their index",
        "fetch the .safetensors.index.json that belongs to them",
    ),
    (r"\.(bin|pt|pth|ckpt)(\.index\.json)?$", "a pickle, which may run code", _TO_SAFETENSORS),
    (r"\.(msgpack|h5)$", "weights for JAX or TensorFlow", _TO_SAFETENSORS),
    (r"\.incomplete$", "an interrupted download", "download it again"),
)


def explain_tensors(names: Iterable[str], dtypes: Iterable[torch.dtype]) -> tuple[str, str] | None:
    """What a file with tensors of these names and dtypes is, and the way out; None if unknown.

    Args:
        names: those that are not expected.
        dtypes: of all its tensors.
    """
    names = list(names)
    for sign in _TENSORS:
        if any(sign.pattern.search(name) for name in names):
            return sign.what, sign.fix
    if any(dtype.itemsize == 1 and dtype.is_floating_point for dtype in dtypes):
        return "fp8 weights", _BF16
    return None


def explain_files(names: Iterable[str]) -> tuple[str, str] | None:
    """What a folder with files of these names holds, and the way out; None if unknown."""
    names = sorted(names)
    for sign in _FILES:
        found = [name for name in names if sign.pattern.search(name)]
        if found:
            return f"{listed(found, 1)}: {sign.what}", sign.fix
    return None


def refuse_folder(folder: Path) -> BadInput:
    """The error for a folder that is no diffusers pipeline: says what it is instead."""
    names = sorted(path.name for path in folder.iterdir())
    where = str(folder)
    if "manifest.json" in names and "engines" in names:
        return BadInput(
            "this is an engine bundle, not a checkpoint",
            where=where,
            fix="give it to generate, or build from the checkpoint that it was made of",
        )
    kind = _class_name(folder / "config.json") if "config.json" in names else ""
    if kind == "WanModel":
        return BadInput(
            "this is a checkpoint in Wan's own layout, not a diffusers folder",
            where=where,
            fix="give the -Diffusers repository of the same model, or the .safetensors file of the "
            "transformer with --components dit",
        )
    if kind:
        return BadInput(
            f"this folder holds one part of a pipeline, a {kind[:60]}",
            where=where,
            fix="give the folder above it, with model_index.json in it",
        )
    explained = explain_files(names)
    if explained is not None:
        return BadInput(f"folder holds no model_index.json but {explained[0]}", where=where,
                        fix=explained[1])  # fmt: skip
    single = [name for name in names if name.endswith(".safetensors")]
    if single:
        return BadInput(
            f"folder holds no model_index.json but {listed(single)}",
            where=where,
            fix="give that file itself with --components dit, or " + _FOLDER.removeprefix("give "),
        )
    return BadInput("folder holds no model_index.json", where=where, fix=_FOLDER)


def refuse_file(path: Path) -> BadInput:
    """The error for a file that is no transformer in safetensors."""
    explained = explain_files([path.name])
    if explained is not None:
        return BadInput(f"checkpoint is {explained[0]}", where=str(path), fix=explained[1])
    return BadInput("checkpoint is a file of another kind", where=str(path), fix=_FOLDER)


def _class_name(path: Path) -> str:
    """What a configuration says that it configures; empty where it cannot be read."""
    try:
        fields = read_json(path, max_bytes=1 << 20)
    except BadInput:
        return ""
    name = fields.get("_class_name") or fields.get("architectures") or ""
    return name if isinstance(name, str) else json.dumps(name)
