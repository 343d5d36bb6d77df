"""Links in the Hugging Face hub's cache: a snapshot's, to its own repository's blobs.

A snapshot holds no content. Each of its files is a link that huggingface_hub wrote::

    models--owner--name/snapshots/<commit>/onnx/dit.data -> ../../../blobs/<etag>
    models--owner--name/blobs/<etag>                        a plain file, or
    models--owner--name/blobs/<etag> -> ../../blobs/<xx>/<hash>

The last is the store that all repositories of a cache share since huggingface_hub 2. Only these
links are taken, and only as they are written there, letter by letter: another text may pass through
a link that leads elsewhere.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_REPOSITORY = re.compile(r"[a-z]+--.+")
_SHARED = re.compile(r"[0-9a-f]{64}")


def put_by_hub(name: str) -> bool:
    """Whether the hub or its tools put a file of this name beside what was uploaded."""
    return name in ("README.md", ".gitattributes") or name.startswith(".cache/huggingface/")


def leads_to_own_blob(link: Path) -> bool:
    """Whether a symbolic link is one of a snapshot and leads to a blob of the same repository.

    Folders above it are followed, the link itself is read.
    """
    folder = Path(os.path.realpath(link.parent))
    repository = _repository_of(folder)
    if repository is None:
        return False
    blob = repository / "blobs" / os.path.basename(os.readlink(link))
    return _is_written_so(folder / link.name, blob) and (
        _is_file(blob) or _leads_to_shared_blob(blob, repository.parent / "blobs")
    )


def hub_cache_of(folder: Path) -> Path | None:
    """Cache in whose snapshots a folder lies, links followed; None if it lies in none."""
    repository = _repository_of(Path(os.path.realpath(folder)))
    return None if repository is None else repository.parent


def _repository_of(folder: Path) -> Path | None:
    """``models--owner--name`` of a folder in one of its snapshots."""
    for each in (folder, *folder.parents):
        if each.parent.name == "snapshots" and _REPOSITORY.fullmatch(each.parent.parent.name):
            return each.parent.parent
    return None


def _leads_to_shared_blob(blob: Path, store: Path) -> bool:
    """Whether a blob is a link into the store that all repositories of the cache share."""
    try:
        name = os.path.basename(os.readlink(blob))
    except OSError:
        return False
    if not _SHARED.fullmatch(name):
        return False
    shared = store / name[:2] / name
    return _is_written_so(blob, shared) and _is_folder(store) and _is_file(shared)


def _is_written_so(link: Path, target: Path) -> bool:
    """Whether a link to a file in a plain folder has the text that huggingface_hub gives it."""
    text = os.path.relpath(target, link.parent)
    return os.readlink(link) == text and _is_folder(target.parent)


def _is_file(path: Path) -> bool:
    return _is(path, stat.S_IFREG)


def _is_folder(path: Path) -> bool:
    return _is(path, stat.S_IFDIR)


def _is(path: Path, kind: int) -> bool:
    """Whether `path` itself, not what it may link to, is of a kind."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode) == kind
    except OSError:
        return False
