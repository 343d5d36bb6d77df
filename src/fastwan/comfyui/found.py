"""What `doctor` finds of a ComfyUI: its version, the nodes in it, and the Python that runs it."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import fastwan
from fastwan.comfyui.install import NAME, comfyui_root
from fastwan.doctor import Finding, Status
from fastwan.errors import BadInput

_NODES = "nodes in ComfyUI"
_PYTHON = "Python of ComfyUI"
_ABILITY = "play bundles in ComfyUI"
_VERSION = re.compile(r"__version__ = [\"']([\w.+-]+)[\"']")
_UNKNOWN = "of unknown version"
_REQUIRED = "comfyui-frontend-package"
"""A requirement of ComfyUI that nothing else has."""


def findings(comfyui: Path) -> list[Finding]:
    """What there is, and the ability that follows from it.

    Args:
        comfyui: ComfyUI's folder, or the one of its portable edition.
    """
    try:
        root = comfyui_root(comfyui)
    except BadInput as error:
        found = [Finding("package", "ComfyUI", "missing", f"{error.what} ({comfyui})", error.fix)]
    else:
        detail = f"{_comfyui_version(root)} ({root})"
        found = [Finding("package", "ComfyUI", "ok", detail), _nodes(root), _python(root)]
    return [*found, _ability(found)]


def _comfyui_version(root: Path) -> str:
    try:
        match = _VERSION.search((root / "comfyui_version.py").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _UNKNOWN
    return match[1] if match else _UNKNOWN


def _nodes(root: Path) -> Finding:
    folder, fix = root / "custom_nodes" / NAME, f"fastwan-export comfyui --install {root}"
    if not (folder / "__init__.py").is_file():
        return Finding("package", _NODES, "missing", "not installed", fix)
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        version = str(tomllib.loads(text)["project"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        version = _UNKNOWN
    if version != fastwan.__version__:
        detail = f"{version}, this package is {fastwan.__version__} ({folder})"
        return Finding("package", _NODES, "optional", detail, fix)
    return Finding("package", _NODES, "ok", f"{version} ({folder})")


def _python(root: Path) -> Finding:
    try:
        metadata.version(_REQUIRED)
    except metadata.PackageNotFoundError:
        detail = f"another one: {sys.executable} lacks {_REQUIRED}"
        fix = f"run this with the Python that runs ComfyUI: -m fastwan doctor --comfyui {root}"
        return Finding("package", _PYTHON, "optional", detail, fix)
    return Finding("package", _PYTHON, "ok", f"this one ({sys.executable})")


def _ability(found: list[Finding]) -> Finding:
    lacking = [each for each in found if each.status != "ok"]
    if not lacking:
        return Finding("ability", _ABILITY, "ok", "with what this Python can do")
    missing = any(each.status == "missing" for each in lacking)
    status: Status = "missing" if missing else "optional"
    detail = "look at " + ", ".join(each.name for each in lacking)
    return Finding("ability", _ABILITY, status, detail, "; ".join(each.fix for each in lacking))
