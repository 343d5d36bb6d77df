"""The three parts of a checkpoint: where each lies, and its tensors, checked name by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from fastwan.config import DecoderConfig, DiTConfig, TextEncoderConfig
from fastwan.errors import BadInput, listed
from fastwan.export.checkpoint.configs import (
    infer_decoder_config,
    read_dit_config,
    read_text_encoder_config,
)
from fastwan.export.checkpoint.folders import (
    TEXT_ENCODER_STEM,
    TRANSFORMER_STEM,
    open_folder,
)
from fastwan.export.checkpoint.foreign import LORA, WEIGHTS
from fastwan.export.checkpoint.hub import GENERATOR
from fastwan.export.checkpoint.names import (
    canonical_dit_name,
    check_tensors,
    expected_decoder_tensors,
    expected_dit_tensors,
    expected_text_encoder_tensors,
)
from fastwan.export.checkpoint.store import TensorStore, open_store

TRANSFORMER = "transformer"
DECODER_FILES = tuple(
    f"{folder}taew2_1{suffix}"
    for folder in ("", "taehv/", "vae/")
    for suffix in (".safetensors", ".pth")
)

_SHARED, _TIED = "shared.weight", "encoder.embed_tokens.weight"
_WHOLE_MODEL = ("decoder.", "lm_head.")
_ROWS = 4096


def transformer_config(root: Path, notes: list[str]) -> tuple[Path, DiTConfig]:
    """Folder of the transformer's weights, and its configuration.

    FastVideo keeps a distilled transformer in a folder of its own beside the base model's; where
    it has no configuration, that of ``transformer/`` holds.

    Args:
        notes: told where one folder is read in place of another.

    Raises:
        BadInput: a configuration is missing or not one of a Wan 2.1 text-to-video transformer.
    """
    distilled, base = root / GENERATOR, root / TRANSFORMER
    if not distilled.is_dir():
        return base, read_dit_config(base / "config.json", notes)
    if base.is_dir() and any(WEIGHTS.match(path.name) for path in base.iterdir()):
        notes.append(f"the weights of {GENERATOR} are read, those of {TRANSFORMER} are not")
    own = distilled / "config.json"
    return distilled, read_dit_config(own if own.is_file() else base / "config.json", notes)


def open_transformer(folder: Path, config: DiTConfig, notes: list[str]) -> TensorStore:
    """Tensors of a transformer under their diffusers names.

    Args:
        notes: see `open_folder`.

    Raises:
        BadInput: no weights, or tensors that are not those of a transformer of this shape.
    """
    store = open_folder(folder, TRANSFORMER_STEM, notes).renamed(canonical_dit_name)
    check_tensors(store, expected_dit_tensors(config), "transformer")
    return store.within(torch.bfloat16)


def open_text_encoder(
    root: Path, dit: DiTConfig, notes: list[str]
) -> tuple[TextEncoderConfig, int | None, TensorStore]:
    """Configuration, end token and tensors of a UMT5 encoder, the embedding as ``shared.weight``.

    Args:
        dit: of the transformer that reads its output.
        notes: told where the folder holds a whole UMT5, of which the encoder is read.

    Raises:
        BadInput: there is none, it does not fit the transformer, or its tensors are not those of
            an encoder of this shape.
    """
    folder = root / "text_encoder"
    if not folder.is_dir():
        raise BadInput(
            "checkpoint has no text_encoder",
            where=str(root),
            fix="leave it out with --components dit,decoder",
        )
    config, end_id = read_text_encoder_config(folder / "config.json")
    if config.d_model != dit.text_dim:
        raise BadInput(
            f"text encoder gives {config.d_model} channels, the transformer takes {dit.text_dim}",
            where=str(folder / "config.json"),
        )
    if (folder / "adapter_config.json").exists():
        raise BadInput(
            "text encoder has LoRA adapters, which transformers would apply",
            where=str(folder / "adapter_config.json"),
            fix="merge them (peft: merge_and_unload()) and save the result, or take them away",
        )
    store = open_folder(folder, TEXT_ENCODER_STEM, notes)
    unused = [name for name in store.names() if name.startswith(_WHOLE_MODEL)]
    if unused:
        notes.append(
            f"text_encoder holds a whole UMT5: {len(unused)} tensors of its decoder are not read"
        )
    store = store.without(lambda name: name.startswith(_WHOLE_MODEL)).within(torch.bfloat16)
    store = _one_embedding(store)
    check_tensors(store, expected_text_encoder_tensors(config), "text encoder")
    return config, end_id, store


def _one_embedding(store: TensorStore) -> TensorStore:
    """The store with the embedding once, as ``shared.weight``: transformers ties the two."""
    if _TIED not in store:
        return store
    if _SHARED not in store:
        return store.renamed(lambda name: _SHARED if name == _TIED else name)
    shape = store.shape(_SHARED)
    if store.shape(_TIED) != shape:
        raise BadInput(f"shape differs from {_SHARED}", where=store.where(_TIED))
    for begin in range(0, shape[0] if shape else 0, _ROWS):
        end = min(begin + _ROWS, shape[0])
        one, other = (store.read_rows(name, begin, end) for name in (_SHARED, _TIED))
        if not torch.equal(one.to(torch.bfloat16), other.to(torch.bfloat16)):
            raise BadInput(
                f"differs from {_SHARED}, and the model has one embedding",
                where=store.where(_TIED),
                fix="delete the wrong one; transformers 5 saved zeros in some versions",
            )
    return store.without(lambda name: name == _TIED)


def open_decoder(
    root: Path | None, taehv: Path | None, notes: list[str]
) -> tuple[DecoderConfig, TensorStore]:
    """Configuration and ``decoder.*`` tensors of TAEHV.

    Args:
        root: of the checkpoint, where one is looked for; None for a checkpoint of one file.
        taehv: file that the user gave.
        notes: told where the checkpoint has several.

    Raises:
        BadInput: there is none, or it is not one for Wan 2.1.
    """
    there = [root / name for name in DECODER_FILES if (root / name).is_file()] if root else []
    path = taehv or next(iter(there), None)
    if path is None:
        raise BadInput(
            "checkpoint has no TAEHV decoder, taew2_1.safetensors",
            where="" if root is None else str(root),
            fix="pass --taehv FILE (weights: github.com/madebyollin/taehv)",
        )
    unread = [each.relative_to(root).as_posix() for each in there if each != path and root]
    if unread and taehv is None and root is not None:
        notes.append(f"decoder: {path.relative_to(root).as_posix()} is read, not {listed(unread)}")
    # The same file holds the encoder, which making a video does not need.
    store = open_store(path).without(lambda name: name.startswith("encoder."))
    if not len(store):
        raise BadInput("file holds no decoder, all tensors are missing", where=str(path))
    config = infer_decoder_config(store)
    check_tensors(store, expected_decoder_tensors(config), "TAEHV decoder")
    return config, store.within(torch.float16)


def tell_beside(files: Iterable[str], notes: list[str]) -> None:
    """Say which weights lie in the top folder of a checkpoint and are not read, LoRA above all.

    Args:
        files: names relative to that folder.
    """
    names = sorted(name for name in files if "/" not in name)
    lora = [name for name in names if LORA.search(name)]
    if lora:
        notes.append(
            f"{listed(lora)}: LoRA adapters beside the checkpoint are not applied; merge them "
            "(diffusers: fuse_lora() and save_pretrained) if they belong to the video"
        )
    others = [
        name
        for name in names
        if WEIGHTS.match(name) and name not in DECODER_FILES and name not in lora
    ]
    if others:
        notes.append(f"{listed(others)}: weights beside the checkpoint's folders are not read")
