"""The folder in ComfyUI's ``custom_nodes`` that brings the nodes there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Literal

from fastwan.errors import BadInput
from fastwan.outputs import OutputFolder
from fastwan.ownership import prove
from fastwan.schema import Report

NAME = "fastwan-export"
"""Of the folder."""

_KIND = "comfyui"
_OURS = Path(__file__).resolve().parent / "custom_node"
_COMPILED = re.compile(r"__pycache__/__init__\.[\w.-]+\.pyc")


class ComfyuiReport(Report):
    """What `fastwan-export comfyui` prints."""

    kind: Literal["comfyui"] = "comfyui"
    schema_version: Literal[1] = 1
    custom_node: str
    """Folder that was written."""
    models: str
    """Folder that bundles are looked for in, unless ComfyUI is configured otherwise."""


def install(comfyui: Path) -> ComfyuiReport:
    """Write the folder of the nodes, in place of an earlier one.

    Args:
        comfyui: ComfyUI's folder, or the one of its portable edition.

    Raises:
        BadInput: no ComfyUI there, or a folder of that name that this tool did not write.
    """
    root = comfyui_root(comfyui)
    folder = root / "custom_nodes" / NAME
    _forget_compiled(folder)
    output = OutputFolder(folder, _KIND, option="--install")
    with output.make() as made:
        for source in sorted(_OURS.rglob("*")):
            if source.suffix in (".py", ".toml", ".json"):
                target = made / source.relative_to(_OURS)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    return ComfyuiReport(custom_node=str(folder), models=str(root / "models" / "fastwan"))


def comfyui_root(comfyui: Path) -> Path:
    """The folder that has ``custom_nodes``; errors as of `install`."""
    for root in (comfyui, comfyui / "ComfyUI"):
        if os.path.isdir(root / "custom_nodes"):
            return root
    raise BadInput(
        "no ComfyUI is there: a folder custom_nodes is missing",
        where=str(comfyui),
        fix="name the folder that has main.py and custom_nodes",
    )


def _forget_compiled(folder: Path) -> None:
    """Remove what Python compiled of our own file, which would count as somebody else's."""
    if not os.path.isdir(folder):
        return
    proof = prove(folder)
    compiled = [name for name in proof.foreign if _COMPILED.fullmatch(name)]
    if proof.kind == _KIND and compiled and len(compiled) == len(proof.foreign):
        shutil.rmtree(folder / "__pycache__")
