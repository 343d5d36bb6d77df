"""What to type to install what is missing: the one place that gives such advice.

The package need not be on any index, so the advice follows from where this copy came from.
"""

from __future__ import annotations

import json
import os
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fastwan

DISTRIBUTION = "fastwan-export"
_PACKAGE = Path(fastwan.__file__).resolve().parent
_EXTRAS = {
    "cuda": "gpu",
    "pynvml": "gpu",
    "tensorrt": "tensorrt",
    "tensorrt_lean": "dev",
    "diffusers": "dev",
    "transformers": "dev",
}
"""Extra of this package that brings a module; the others are brought by the package itself."""


def extra_of(module: str) -> str:
    """The extra that brings a module; empty for what the package needs everywhere."""
    return _EXTRAS.get(module.partition(".")[0], "")


def how_to_install(extra: str = "") -> str:
    """The command that installs what this copy lacks.

    From a checkout it installs the checkout, from a wheel or a repository that one again with the
    extra; where neither is known or there any more, the packages themselves, which are on PyPI.

    Args:
        extra: of this package; empty for what it needs everywhere.
    """
    wanted = f"[{extra}]" if extra else ""
    root = _PACKAGE.parent.parent
    if (root / "pyproject.toml").is_file() and (root / "constraints.txt").is_file():
        if root == Path.cwd():
            return _pip("-c", "constraints.txt", "-e", f".{wanted}")
        return _pip("-c", str(root / "constraints.txt"), "-e", f"{root}{wanted}")
    source = _source()
    if source.startswith("file:"):
        path = url2pathname(urlsplit(source).path)
        source = "" if not os.path.exists(path) else f"{path}{wanted}"
    elif source:
        source = f"{DISTRIBUTION}{wanted} @ {source}"
    return _pip(source) if source else _pip(*_packages(extra))


def _pip(*words: str) -> str:
    return shlex.join(["pip", "install", *words])


def _source() -> str:
    """URL that this copy was installed from, as of PEP 610; empty where nothing tells."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        told = json.loads(text or "{}")
        url, commit = str(told.get("url", "")), told.get("vcs_info", {})
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return ""
    return f"{commit['vcs']}+{url}@{commit['commit_id']}" if commit else url


def _packages(extra: str) -> list[str]:
    """Requirements of an extra, or of the package without any, as its metadata has them."""
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        required = []
    found = []
    for each in required:
        name, _, condition = each.partition(";")
        asked = condition.replace('"', "'").replace(" ", "")
        if asked == (f"extra=='{extra}'" if extra else ""):
            found.append(name.strip())
    return found or [DISTRIBUTION]
