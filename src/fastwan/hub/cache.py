"""A repository in the Hugging Face hub's cache, read without the hub.

Its folder, ``models--owner--name``, holds for every name of a revision the commit that it stood for
(``refs/main``), for every commit the files that were fetched of it (``snapshots/<commit>``), and
since huggingface_hub 1.22 the list of all its files (``trees/<commit>.json``). The layout is
described at https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.files import open_regular
from fastwan.strict_json import read_json

DEFAULT_REVISION = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """What the hub says of a file; None where it says nothing.

    Attributes:
        size: bytes.
        sha256: of the content, which the hub knows of large files.
    """

    size: int | None = None
    sha256: str | None = None


class CachedRepository:
    """A model's repository in the hub's cache; the folder need not be there.

    Attributes:
        folder: ``models--owner--name``.
    """

    def __init__(self, cache: Path, repo: str) -> None:
        self.folder = cache / f"models--{repo.replace('/', '--')}"

    def commit(self, revision: str | None) -> str | None:
        """Commit that a branch, tag or commit hash stood for when it was last fetched."""
        revision = revision or DEFAULT_REVISION
        if COMMIT.fullmatch(revision):
            return revision
        try:
            with open_regular(self.folder / "refs" / revision) as stream:
                text = stream.read(256).decode("ascii", "replace").strip()
        except (OSError, BadInput):
            return None
        return text if COMMIT.fullmatch(text) else None

    def commits(self) -> list[str]:
        """Commits of which something was fetched, sorted."""
        try:
            names = os.listdir(self.folder / "snapshots")
        except OSError:
            return []
        return sorted(name for name in names if COMMIT.fullmatch(name))

    def snapshot(self, commit: str) -> Path:
        """Folder of what was fetched of a commit."""
        return self.folder / "snapshots" / commit

    def listing(self, commit: str) -> dict[str, HubFile] | None:
        """All files of the repository at a commit; None where the cache does not know."""
        try:
            files = read_json(self.folder / "trees" / f"{commit}.json")["files"]
            return safe(
                {
                    name: hub_file(entry.get("size"), entry.get("lfs_sha256"))
                    for name, entry in files.items()
                }
            )
        except (BadInput, KeyError, AttributeError):
            return None

    def fetched(self, commit: str) -> dict[str, HubFile]:
        """Files of a commit that were fetched."""
        root = self.snapshot(commit)
        names = (Path(folder, name) for folder, _, files in os.walk(root) for name in files)
        return {path.relative_to(root).as_posix(): HubFile() for path in names if path.is_file()}

    def blob_sha256(self, commit: str, name: str) -> str | None:
        """SHA-256 by which the cache names the content of a large file."""
        with suppress(OSError):
            blob = os.path.basename(os.readlink(self.snapshot(commit) / name))
            return blob if _SHA256.fullmatch(blob) else None
        return None

    def remember(self, revision: str | None, commit: str) -> None:
        """Note the commit that a branch or tag stands for, where the cache can be written."""
        revision = revision or DEFAULT_REVISION
        if revision == commit or self.commit(revision) == commit:
            return
        temporary = self.folder / f".ref-{secrets.token_hex(8)}"
        target = self.folder / "refs" / revision
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(commit, encoding="ascii")
            os.replace(temporary, target)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def hub_cache() -> Path:
    """Folder of the hub's cache: ``$HF_HUB_CACHE``, or ``hub`` in ``$HF_HOME``.

    Raises:
        EnvironmentLacks: this user has no home folder.
    """
    from huggingface_hub import constants

    try:
        return Path(os.path.abspath(Path(constants.HF_HUB_CACHE).expanduser()))
    except RuntimeError:
        raise EnvironmentLacks(
            "no home folder for the hub's cache", fix="set HF_HOME to a folder that can be written"
        ) from None


def hub_file(size: object, sha256: object) -> HubFile:
    """Facts of a file as a listing has them; what is not of their form counts as unknown."""
    return HubFile(
        size if isinstance(size, int) and size >= 0 else None,
        sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None,
    )


def safe(files: Mapping[str, HubFile]) -> dict[str, HubFile]:
    """Those of a repository's files that lie in it by their names."""
    return {
        name: file
        for name, file in files.items()
        if name and not name.startswith("/") and ".." not in PurePosixPath(name).parts
    }
