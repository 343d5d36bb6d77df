"""Bundles that lie in ComfyUI's model folders, and what a user chooses them by.

A choice is the folder's name and a shape, ``fastwan-qad 832x480x81``: what a bundle makes is seen
before anything runs. The name alone, as a workflow of somebody else has it, is the first shape.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastwan.bundle import Bundle, open_bundle
from fastwan.comfyui import host
from fastwan.errors import BadInput, FastWanError, listed
from fastwan.files import sha256_file
from fastwan.manifest import MANIFEST, Manifest
from fastwan.manifest_reader import parse_manifest
from fastwan.shapes import parse_shape, shape_text

_DEEPEST = 3
"""Levels of folders that are looked through for bundles."""

_SHOWN = 8
"""Choices that an error names."""

_known: dict[Path, tuple[tuple[int, int], Manifest | None]] = {}
"""Manifests that were read, with time and size of their files; None for one that is none."""


def bundle_names() -> dict[str, Path]:
    """Folders of bundles by the name they are chosen by: their path below a model folder."""
    found: dict[str, Path] = {}
    for root in host.model_folders():
        for folder in _with_manifest(root, _DEEPEST):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    return dict(sorted(found.items()))


def _with_manifest(folder: Path, levels: int) -> list[Path]:
    try:
        entries = sorted(each.name for each in os.scandir(folder) if each.is_dir())
    except OSError:
        return []
    found = []
    for name in entries:
        if (folder / name / MANIFEST).is_file():
            found.append(folder / name)
        elif levels > 1:
            found += _with_manifest(folder / name, levels - 1)
    return found


def choices() -> list[str]:
    """What can be chosen, a row for each shape of each bundle."""
    rows = []
    for name, folder in bundle_names().items():
        manifest = _manifest(folder)
        shapes = () if manifest is None else manifest.video_shapes
        rows += [f"{name} {shape_text(shape)}" for shape in shapes]
    return rows


def _manifest(folder: Path) -> Manifest | None:
    """The manifest of a bundle, read once; None where it is of no bundle that can be played."""
    path = folder / MANIFEST
    try:
        now = os.stat(path)
        seen = (now.st_mtime_ns, now.st_size)
        if path not in _known or _known[path][0] != seen:
            _known[path] = (seen, parse_manifest(path, Manifest, where=str(folder)))
    except FastWanError:
        _known[path] = (seen, None)
    except OSError:
        return None
    return _known[path][1]


def chosen(choice: str) -> Bundle:
    """Open the bundle of a choice, at its shape.

    Raises:
        BadInput: none of that name, one that cannot be opened, or a shape that it does not make.
        VerificationFailed: a file of it has another size than its manifest says.
    """
    names = bundle_names()
    name, _, shape = choice.strip().rpartition(" ")
    if choice.strip() in names:
        name, shape = choice.strip(), ""
    if name not in names:
        raise BadInput(
            f"there is no bundle {choice!r:.100}",
            where=", ".join(map(str, host.model_folders())),
            fix=f"choose one of {listed(choices(), _SHOWN)}" if names else _how_to_build(),
        )
    return open_bundle(names[name], shape=parse_shape(shape) if shape else None)


def _how_to_build() -> str:
    folder = next(iter(host.model_folders()), Path("models") / host.FOLDER)
    return f"fastwan-export build-engine --checkpoint CHECKPOINT -o {folder / 'fastwan-qad'}"


def fingerprint(choice: str) -> str:
    """What changes when another bundle takes the place of the chosen one.

    Raises:
        FastWanError, OSError: see `chosen`.
    """
    bundle = chosen(choice)  # whose folder can be read as long as it lives
    return sha256_file(bundle.folder / MANIFEST)
