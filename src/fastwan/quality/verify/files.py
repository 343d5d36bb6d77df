"""`integrity`: the files of a bundle are those that its manifest lists, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

from fastwan.bundle import Bundle
from fastwan.errors import FastWanError
from fastwan.hub.links import put_by_hub
from fastwan.manifest import MANIFEST, ONNX_MANIFEST, Manifest
from fastwan.ownership import RECORD
from fastwan.quality.verify.report import Check

INTEGRITY = "integrity"
"""Name of the check; it runs first, whatever else was chosen."""

_SHOWN = 4


def check_integrity(bundle: Bundle) -> Check:
    """Hash every file; count those that are missing, changed, unlisted or no plain files."""
    bad = []
    for name in sorted(set(bundle.manifest.files) | referenced_files(bundle.manifest)):
        try:
            bundle.file(name)
        except FastWanError as error:
            bad.append(f"{name}: {error.what}")
        except OSError as error:
            bad.append(f"{name}: {error.strerror}")
    listed = {MANIFEST, RECORD, *bundle.manifest.files}
    others = [name for name in _files_of(bundle.folder) if name not in listed]
    bad += [f"{name}: not listed" for name in others if not put_by_hub(name)]
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    note = "; ".join(bad[:_SHOWN]) + more if bad else f"{len(bundle.manifest.files)} files hashed"
    value = float(len(bad)) if bundle.manifest.files else None
    return Check(
        name=INTEGRITY,
        metric="files that differ from the manifest",
        value=value,
        limit=0.0,
        note=note,
    )


def referenced_files(manifest: Manifest) -> set[str]:
    """Files that some part of the manifest names, and that its list therefore has to hold."""
    names = {f"onnx/{ONNX_MANIFEST}"}
    return names.union(*(each.files for each in manifest.parts))


def _files_of(root: Path) -> list[str]:
    """Everything under `root` that is no plain folder; links are not followed."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=False):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [str((Path(folder) / name).relative_to(root)) for name in (*files, *links)]
    return sorted(found)
