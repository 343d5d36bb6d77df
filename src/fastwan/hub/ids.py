"""Names of repositories on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastwan.errors import BadInput

_REPO = r"\w[\w.-]*/\w[\w.-]*"
_REVISION = r"(?!.*(?:\.\.|//))\w[^\s~^:?*\[\]\\@\x00-\x1f\x7f]*(?<![./])"
_ID = re.compile(rf"(?P<repo>{_REPO})(?:@(?P<revision>{_REVISION}))?")


@dataclass(frozen=True)
class HubId:
    """A repository on the hub.

    Attributes:
        repo: ``owner/name``.
        revision: branch, tag or commit hash; None for the default branch.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def is_repo_id(source: str) -> bool:
    """Whether `source` reads as ``owner/name`` or ``owner/name@revision``."""
    found = _ID.fullmatch(source)
    return found is not None and ".." not in found["repo"]


def require_repo_id(source: str) -> None:
    """Refuse a checkpoint that lies nowhere on this machine and is no name on the hub.

    Raises:
        BadInput: `source` is none.
    """
    if not is_repo_id(source):
        raise BadInput(
            "checkpoint does not exist",
            where=source,
            fix="give a folder or a Hugging Face id such as FastVideo/FastWan-QAD-1.3B",
        )


def parse_id(source: str, revision: str | None = None) -> HubId:
    """Repository and revision of ``owner/name`` or ``owner/name@revision``.

    Args:
        revision: of its own option; the same where both are given.

    Raises:
        BadInput: not of that form, or two revisions.
    """
    found = _ID.fullmatch(source)
    if found is None or ".." in found["repo"]:
        raise BadInput("not a model's name", where=source[:120], fix="give it as owner/name")
    if revision is None:
        return HubId(found["repo"], found["revision"])
    if not re.fullmatch(_REVISION, revision):
        raise BadInput(
            f"{revision[:120]!a} is no revision", where=source, fix="a branch, a tag or a commit"
        )
    if found["revision"] not in (None, revision):
        raise BadInput(
            f"two revisions, {found['revision']} and {revision}", where=source, fix="give one"
        )
    return HubId(found["repo"], revision)
