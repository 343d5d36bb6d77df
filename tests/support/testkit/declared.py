"""Dependencies as pyproject.toml declares them, whatever copy is installed."""

from __future__ import annotations

import tomllib
from pathlib import Path


def declared_requirements(root: Path) -> dict[str, list[str]]:
    """Requirements by extra; the empty name has those of every install."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}
