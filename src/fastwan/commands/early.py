"""What a command asks of its words before it imports a library: the answer comes at once.

The functions that do the work ask again, and more; they are called from Python, too.
"""

from __future__ import annotations

from pathlib import Path

from fastwan.bundle_folder import MANIFEST, require_folder, require_manifest
from fastwan.config import COMPONENTS, VideoShape
from fastwan.hub.ids import require_repo_id
from fastwan.outputs import OutputFolder
from fastwan.tables import require_listed


def require_bundle(*folders: Path) -> None:
    """Refuse what is no folder of a bundle.

    Raises:
        BadInput: no folder, or one without a manifest.
    """
    for folder in folders:
        require_folder(folder)
        require_manifest(folder / MANIFEST, str(folder))


def require_checkpoint(source: str) -> None:
    """Refuse what lies nowhere and is no name on the hub.

    Raises:
        BadInput: likewise.
    """
    if not Path(source).exists():
        require_repo_id(source)


def parse_components(text: str) -> tuple[str, ...]:
    """Components of a comma-separated list, in the order of `COMPONENTS`.

    Raises:
        BadInput: an unknown one, or none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    require_listed(COMPONENTS, names, "component", "--components")
    return tuple(name for name in COMPONENTS if name in names)


def require_size(height: int | None, width: int | None, num_frames: int | None) -> None:
    """Refuse a size that no video can have, whatever the checkpoint says of the sides not given.

    Raises:
        BadInput: see `VideoShape`.
    """
    VideoShape(
        height=16 if height is None else height,
        width=16 if width is None else width,
        num_frames=1 if num_frames is None else num_frames,
    )


def require_output(
    folder: Path | None,
    kind: str,
    *inputs: Path,
    force: bool = False,
    option: str = "-o",
) -> None:
    """Refuse a folder that may not be replaced or cannot be made, see `OutputFolder`.

    Args:
        folder: None where nothing is written.

    Raises:
        BadInput: likewise.
    """
    if folder is not None:
        OutputFolder(folder, kind, force, option, inputs)
