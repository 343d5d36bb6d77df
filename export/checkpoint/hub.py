"""Fetching a checkpoint from the Hugging Face hub: only the files that are read."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from fastwan.errors import BadInput, listed
from fastwan.export.checkpoint.identity import CARD
from fastwan.export.checkpoint.model_index import MODEL_INDEX
from fastwan.hub.repository import Repository, open_repository
from fastwan.manifest import MANIFEST
from fastwan.manifest_sources import HubSource

GENERATOR = "generator_inference_transformer"
"""Folder of a distilled transformer, which comes before the base model's."""

_ALWAYS = (
    MODEL_INDEX,
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "transformer_2/config.json",
)
_STEMS = {
    GENERATOR: "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Name of the weights in a component's folder, without suffix."""

_DECODER = re.compile(r"(taehv/|vae/)?taew2_1\.[^/]*")
_TEXTS = (".json", ".model", ".txt")


class Fetched(NamedTuple):
    """A checkpoint in the hub's cache: its folder, what it is, and all files of the repository."""

    folder: Path
    source: HubSource
    files: tuple[str, ...]


def wanted_files(files: Collection[str], components: Collection[str]) -> list[str]:
    """Those of a repository's files that the reader opens for `components`.

    Pickles are left where they are but for the decoder, which upstream publishes as one.
    """
    wanted = {name for name in _ALWAYS if name in files}
    for folder in _weight_folders(files, components):
        wanted |= _texts(files, folder) | _weights(files, folder)
    if "text_encoder" in components:
        wanted |= _texts(files, "tokenizer")
    if "decoder" in components:
        wanted |= {name for name in files if _DECODER.fullmatch(name)}
    return sorted(wanted)


def fetch_checkpoint(
    source: str, components: Collection[str], revision: str | None = None
) -> Fetched:
    """A checkpoint in the hub's cache, fetched if need be.

    Args:
        source: ``owner/name`` or ``owner/name@revision``.
        components: of `fastwan.config.COMPONENTS`.
        revision: branch, tag or commit; the default branch where neither names one.

    Raises:
        BadInput: no such repository or revision, no access to it, or no checkpoint in it.
        EnvironmentLacks: the hub cannot be reached and its cache lacks a file, a download failed,
            or the cache cannot be written.
    """
    repository = open_repository(source, revision)
    wanted = wanted_files(repository.files, components)
    required = [MODEL_INDEX, *_lacking_weights(repository.files, components)]
    if repository.whole:
        _check_listing(repository, required)
    else:
        # Of what is not listed the usual names are asked for, and the error says that they lack.
        wanted += [name for name in required if name not in wanted]
    card = [CARD] if CARD in repository.files else []
    folder = repository.get(wanted, helpful=card)
    repository.keep()
    pinned = HubSource(repo=repository.id.repo, commit=repository.commit)
    return Fetched(folder, pinned, tuple(repository.files))


def _weight_folders(files: Collection[str], components: Collection[str]) -> list[str]:
    folders = []
    if "dit" in components:
        distilled = any(name.startswith(f"{GENERATOR}/") for name in files)
        folders.append(GENERATOR if distilled else "transformer")
    if "text_encoder" in components:
        folders.append("text_encoder")
    return folders


def _texts(files: Collection[str], folder: str) -> set[str]:
    return {name for name in files if _parent(name) == folder and name.endswith(_TEXTS)}


def _weights(files: Collection[str], folder: str) -> set[str]:
    """Weights in a folder; without their variants (``.fp16.``) where there are plain ones."""
    found = {name for name in files if _parent(name) == folder and name.endswith(".safetensors")}
    variant = re.compile(rf".*/{_STEMS[folder]}\.[A-Za-z]\w*(-\d+-of-\d+)?\.safetensors")
    return {name for name in found if not variant.fullmatch(name)} or found


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _lacking_weights(files: Collection[str], components: Collection[str]) -> list[str]:
    """Usual names of the weights of which a repository has none."""
    return [
        f"{folder}/{_STEMS[folder]}.safetensors"
        for folder in _weight_folders(files, components)
        if not _weights(files, folder)
    ]


def _check_listing(repository: Repository, required: list[str]) -> None:
    """Refuse a repository that is no checkpoint of safetensors, and say what it holds instead."""
    files = repository.files
    for name in required:
        if name in files:
            continue
        if MANIFEST in files and name == MODEL_INDEX:
            raise BadInput(
                "this is an engine bundle, not a checkpoint",
                where=str(repository.id),
                fix="play it with FastWanPipeline.from_pretrained, or build from the checkpoint "
                "that it was made of",
            )
        beside = sorted(each for each in files if _parent(each) == _parent(name))
        raise BadInput(
            f"the repository holds no {name}" + (f" but {listed(beside)}" if beside else ""),
            where=str(repository.id),
            fix="give the repository of a diffusers pipeline with safetensors weights",
        )
