"""A transformer in one ``.safetensors`` file, whose shape is told from its tensors."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from fastwan.config import DiTConfig
from fastwan.errors import BadInput
from fastwan.export.checkpoint.foreign import explain_tensors
from fastwan.export.checkpoint.names import (
    canonical_dit_name,
    check_tensors,
    expected_dit_tensors,
)
from fastwan.export.checkpoint.store import TensorStore, open_store

_HEAD = 128
_LAYERS = 256


def open_single_file(path: Path, notes: list[str]) -> tuple[DiTConfig, TensorStore]:
    """Configuration and tensors of a transformer under diffusers', FastVideo's or Wan's names.

    Every number of a configuration is a size of some tensor, save the width of a head, which is
    128 in all of Wan, and the epsilon of the norms.

    Args:
        path: file of the original repository, of ComfyUI or of another tool.
        notes: told what the file does not say.

    Raises:
        BadInput: it holds something else, or more or less than a transformer.
    """
    store = open_store(path).renamed(canonical_dit_name)
    config = _config(store)
    check_tensors(store, expected_dit_tensors(config), "transformer")
    notes.append(
        f"one file says neither the sampler nor the epsilon of the norms: {config.eps:g} and the "
        "published sampler are assumed"
    )
    return config, store.within(torch.bfloat16)


def _config(store: TensorStore) -> DiTConfig:
    patch = _shape(store, "patch_embedding.weight", 5)
    blocks = {found[1] for name in store if (found := re.match(r"blocks\.(\d+)\.", name))}
    if patch[0] % _HEAD or patch[1:] != (16, 1, 2, 2) or not 0 < len(blocks) <= _LAYERS:
        raise BadInput(
            f"patch embedding {list(patch)} and {len(blocks)} blocks are not of a Wan 2.1 "
            "text-to-video transformer",
            where=store.where("patch_embedding.weight"),
            fix="give a text-to-video model such as FastWan-QAD-1.3B",
        )
    embedder = "condition_embedder"
    time = f"{embedder}.time_embedder.linear_1.weight"
    freq_dim = _shape(store, time, 2)[1]
    if freq_dim % 2 or not freq_dim:
        raise BadInput(f"{freq_dim} is no number of sines and cosines", where=store.where(time))
    return DiTConfig(
        num_layers=len(blocks),
        num_heads=patch[0] // _HEAD,
        ffn_dim=_shape(store, "blocks.0.ffn.net.0.proj.weight", 2)[0],
        text_dim=_shape(store, f"{embedder}.text_embedder.linear_1.weight", 2)[1],
        freq_dim=freq_dim,
    )


def _shape(store: TensorStore, name: str, axes: int) -> tuple[int, ...]:
    if name not in store:
        explained = explain_tensors(store.names(), map(store.dtype, store.names()))
        where = str(store.files[0]) if len(store) else "checkpoint"
        if explained is not None:
            raise BadInput(f"file holds {explained[0]}", where=where, fix=explained[1])
        raise BadInput(
            f"file holds no transformer: {name} is missing",
            where=where,
            fix="give a Wan 2.1 transformer, or the folder of a diffusers pipeline",
        )
    shape = store.shape(name)
    if len(shape) != axes:
        raise BadInput(f"tensor has shape {list(shape)}", where=store.where(name))
    return shape
