"""The key under which a pipeline keeps the cache of a build between its runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import fastwan
from fastwan.build import BuildSpec
from fastwan.engines.backend import load_backend
from fastwan.errors import BadInput
from fastwan.export.cache import fingerprint
from fastwan.export.checkpoint.lora import parse_lora
from fastwan.files import sha256_file
from fastwan.hub.ids import require_repo_id

_PACKAGE = Path(fastwan.__file__).resolve().parent
_NO_PART = {"output", "force", "use_cache"}
"""Options that change nothing of what is cached."""


def cache_key(spec: BuildSpec) -> str:
    """Hex SHA-256 of all that decides what a build finds in the cache and leaves there.

    Entries have keys of their own by content, so a cache that was kept under another key is never
    wrong; a build with this key leaves nothing that is not in it already. It covers the files of
    the checkpoint, or the commit that it is on the hub; the other files and all options; this
    package's code that exports and builds; and the versions of exporter and builder.

    Raises:
        BadInput: a file cannot be read, or there is no such checkpoint.
        EnvironmentLacks: the builder is missing, or the hub cannot be reached.
    """
    loras = [path for path, _ in map(parse_lora, spec.lora)]
    named = [path for path in (spec.taehv, spec.calibration, *loras) if path is not None]
    options = {
        each.name: str(getattr(spec, each.name))
        for each in fields(spec)
        if each.name not in {*_NO_PART, "checkpoint", "taehv", "calibration"}
    }
    facts = {
        "checkpoint": _checkpoint(spec),
        "files": _hashes((path.name, path) for path in named),
        "options": options,
        "exporter": fingerprint(_PACKAGE),
        "engines": _hashes(_below(_PACKAGE / "engines", ".py")),
        "builder": load_backend(spec.backend).version(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _checkpoint(spec: BuildSpec) -> object:
    """Files of a folder by hash, or repository and commit on the hub."""
    path = Path(spec.checkpoint)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise BadInput(f"not a path: {error}", where=spec.checkpoint[:120]) from None
    if exists:
        return _hashes(_below(path, "") if is_folder else [(path.name, path)])
    require_repo_id(spec.checkpoint)
    from fastwan.hub.repository import open_repository

    repository = open_repository(spec.checkpoint, spec.revision)
    return [repository.id.repo, repository.commit]


def _below(root: Path, suffix: str) -> list[tuple[str, Path]]:
    """Files below a folder by relative path, but for hidden ones."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        found += [(path.relative_to(root).as_posix(), path) for path in paths]
    return sorted(each for each in found if each[0].endswith(suffix))


def _hashes(files: Iterable[tuple[str, Path]]) -> list[tuple[str, str]]:
    """Names and hashes.

    Raises:
        BadInput: a file cannot be read.
    """
    try:
        return [(name, sha256_file(path)) for name, path in files]
    except OSError as error:
        raise BadInput(
            f"cannot be read: {error.strerror or error}", where=str(error.filename)
        ) from None
