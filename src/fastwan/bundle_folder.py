"""The folder of a bundle: names that it has to hold, asked for without reading anything."""

from __future__ import annotations

import os
from pathlib import Path

from fastwan.errors import BadInput

MANIFEST = "manifest.json"


def require_folder(root: Path) -> None:
    """Refuse what is no folder.

    Raises:
        BadInput: likewise.
    """
    if not os.path.isdir(root):
        raise BadInput("bundle is not a folder", where=str(root), fix="see build-engine -o")


def require_manifest(path: Path, where: str) -> None:
    """Refuse a manifest that is not there.

    Args:
        where: what the message calls its folder.

    Raises:
        BadInput: likewise.
    """
    if not os.path.exists(path):
        raise BadInput(f"{path.name} is missing", where=where, fix="is this a bundle's folder?")
