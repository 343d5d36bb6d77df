"""The weights in a component's folder: which of its files are read, and what is said of others."""

from __future__ import annotations

import re
from pathlib import Path

from fastwan.errors import BadInput, listed
from fastwan.export.checkpoint.foreign import WEIGHTS, explain_files
from fastwan.export.checkpoint.store import TensorStore, open_store

TRANSFORMER_STEM = "diffusion_pytorch_model"
TEXT_ENCODER_STEM = "model"


def open_folder(folder: Path, stem: str, notes: list[str]) -> TensorStore:
    """Open the weights of a diffusers or transformers component folder.

    Where a folder holds them twice the library's own order decides: diffusers looks for an index
    first, transformers for the single file. A variant (``<stem>.fp16.safetensors``) is read where
    there is nothing else.

    Args:
        folder: e.g. ``transformer/``.
        stem: `TRANSFORMER_STEM` or `TEXT_ENCODER_STEM`.
        notes: told of a variant, and of weights in the folder that are not read.

    Raises:
        BadInput: no weights that can be read, or damaged ones; what else lies there is named.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    plain = [index, single] if stem == TRANSFORMER_STEM else [single, index]
    chosen = next((name for name in plain if name in names), None)
    if chosen is None:
        chosen = _variant(folder, stem, names)
        notes.append(f"{folder.name}: {chosen} is a variant, whose values are rounded as it says")
    store = open_store(folder / chosen)
    read = {chosen, *(path.name for path in store.files)}
    unread = [name for name in names if WEIGHTS.match(name) and name not in read]
    unread += [name for name in names if name == "adapter_config.json"]
    if unread:
        explained = explain_files(unread)
        kind = f" ({explained[0].partition(': ')[2]})" if explained else ""
        notes.append(f"{folder.name}: {chosen} is read, not {listed(unread)}{kind}")
    return store


def _variant(folder: Path, stem: str, names: list[str]) -> str:
    """File name of the only variant of the weights."""
    kinds = rf"{re.escape(stem)}\.(?:safetensors\.index\.(\w+)\.json|([A-Za-z]\w*)\.safetensors)"
    matches = [found for found in (re.fullmatch(kinds, name) for name in names) if found]
    variants = {found[1] or found[2]: found[0] for found in matches}
    if len(variants) == 1:
        return next(iter(variants.values()))
    if variants:
        raise BadInput(
            f"holds the variants {listed(sorted(variants))}, and no {stem}.safetensors",
            where=str(folder),
            fix="leave the one that is meant",
        )
    lacking = f"holds neither {stem}.safetensors nor {stem}.safetensors.index.json"
    explained = explain_files(names)
    if explained is not None:
        raise BadInput(f"{lacking} but {explained[0]}", where=str(folder), fix=explained[1])
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        raise BadInput(
            f"{lacking} but {listed(others)}",
            where=str(folder),
            fix=f"if that is it, rename it to {stem}.safetensors",
        )
    raise BadInput(lacking, where=str(folder), fix="complete the download")
