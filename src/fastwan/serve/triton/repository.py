"""Writes a model repository: config, model and bundle."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Literal

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.outputs import OutputFolder
from fastwan.schema import Report
from fastwan.serve.triton.config import BUNDLE, config_text

VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MODEL = '''"""FastWan by the Python backend: the package fastwan-export has to be installed."""

from fastwan.serve.triton.model import FastWanModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class TritonReport(Report):
    """What `fastwan-export export-triton` prints."""

    kind: Literal["export-triton"] = "export-triton"
    schema_version: Literal[1] = 1
    repository: str
    """Folder for ``tritonserver --model-repository``."""
    model: str
    """Name that clients ask for."""
    device: str
    """What plays: cuda, cpu or emulated."""


def write_repository(
    bundle: Path, output: Path, *, name: str, device: str, force: bool = False
) -> TritonReport:
    """Write ``output/name/config.pbtxt``, and ``model.py`` beside the bundle in ``name/1``.

    Files of the bundle are linked where the disk is the same, else copied.

    Raises:
        BadInput: no bundle, a name that is no folder's, or an output that may not be replaced.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(f"{name!r} is no name of a model", fix="letters, digits and _ . -")
    manifest = open_bundle(bundle).manifest
    place = OutputFolder(output, "triton", force=force, inputs=(bundle,))
    with place.make() as folder:
        version = folder / name / VERSION
        version.mkdir(parents=True)
        text = config_text(name, device, manifest.video_shapes)
        (folder / name / "config.pbtxt").write_text(text, "ascii")
        (version / "model.py").write_text(_MODEL, "ascii")
        shutil.copytree(bundle, version / BUNDLE, copy_function=_link)
    return TritonReport(repository=str(output), model=name, device=device)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
