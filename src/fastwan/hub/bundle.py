"""An engine bundle that lies in a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from fastwan.errors import BadInput, listed
from fastwan.hub.repository import open_repository
from fastwan.manifest import MANIFEST, Manifest
from fastwan.manifest_reader import parse_manifest


def fetch_bundle(
    source: str, revision: str | None = None, *, local_files_only: bool = False
) -> Path:
    """Folder of an engine bundle that lies in a repository of the hub, in the hub's cache.

    The files that its manifest lists are fetched, and no others. `fastwan.bundle.open_bundle` opens
    the folder, and holds every file against the manifest before it is used.

    Args:
        source: ``owner/name`` or ``owner/name@revision``.
        revision: branch, tag or commit; the default branch where neither names one.
        local_files_only: take what was fetched before, without asking the hub.

    Raises:
        BadInput: no such repository or revision, no access to it, or it holds no bundle.
        EnvironmentLacks: the hub cannot be reached and its cache does not hold the bundle, or a
            download failed.
    """
    repository = open_repository(source, revision, local_files_only=local_files_only)
    if MANIFEST not in repository.files:
        is_checkpoint = "model_index.json" in repository.files
        raise BadInput(
            "this is a checkpoint, not an engine bundle"
            if is_checkpoint
            else f"the repository holds no engine bundle, no {MANIFEST}",
            where=source,
            fix=f"make one: fastwan-export build-engine --checkpoint {source}"
            if is_checkpoint
            else "give one that was made of the folder that build-engine wrote",
        )
    folder = repository.get([MANIFEST])
    files = parse_manifest(folder / MANIFEST, Manifest, where=source).files
    lacking = sorted(files.keys() - repository.files.keys())
    if lacking:
        raise BadInput(
            f"{MANIFEST} lists {listed(lacking)}, which the repository does not hold",
            where=source,
            fix="upload the whole folder of the bundle",
        )
    repository.get([MANIFEST, *files], proven=False)
    repository.keep()
    return folder
