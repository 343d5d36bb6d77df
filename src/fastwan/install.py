"""What to type to install what is missing: the one place that gives such advice.

The package need not be on any index, so the advice follows from where this copy came from.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fastwan
from fastwan import cuda_driver
from fastwan.errors import EnvironmentLacks

DISTRIBUTION = "fastwan-export"
_PACKAGE = Path(fastwan.__file__).resolve().parent
_PLAY = ("av", "PIL", "safetensors", "tokenizers", "tqdm")
_CPU = ("onnxruntime", *_PLAY)
_SERVE = ("fastapi", "prometheus_client", "python_multipart", "starlette", "uvicorn")
_REPORT = ("matplotlib", "jinja2", "PIL")

EXTRAS: dict[str, tuple[str, ...]] = {
    "cpu": _CPU,
    "build": (
        "torch", "modelopt", "tensorrt_rtx", "onnx_ir", "onnxscript", "polygraphy", "requests",
        "skimage", *_CPU, *_REPORT,
    ),
    "gpu": ("cuda.bindings", "pynvml", "tensorrt_rtx", *_PLAY),
    "emulated": ("torch", "cuda.bindings", *_PLAY),
    "report": _REPORT,
    "serve": _SERVE,
    "serve-ray": ("ray.serve", *_SERVE),
    "tensorrt": ("tensorrt",),
    "dev": ("diffusers", "tensorrt_lean", "transformers"),
}  # fmt: skip
"""Modules that an extra of this package brings, beside those that the package always needs. The
first stands for the extra: without it, none of its commands does anything."""


def extra_of(module: str) -> str:
    """The extra that brings a module; empty for what the package needs everywhere.

    Of several it is the one for playing on a GPU where a device is visible, else the first.
    """
    extras = [
        extra
        for extra, modules in EXTRAS.items()
        if any(_within(module, each) or _within(each, module) for each in modules)
    ]
    if "gpu" in extras and len(extras) > 1 and cuda_driver.cuda_device_count():
        return "gpu"
    return extras[0] if extras else ""


def _within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def require(extra: str) -> None:
    """Refuse to begin what needs an extra that is not installed; imports nothing.

    A package that is missing beside its first one is told of where it is imported.

    Raises:
        EnvironmentLacks: with the command that installs it.
    """
    first = EXTRAS[extra][0]
    if not _is_there(first):
        raise EnvironmentLacks(
            f"this needs the extra {extra!r}, which is not installed: no {first}",
            fix=how_to_install(extra),
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
    except ValueError:  # imported already, from nowhere
        return True


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
    return shlex.join([*(["pip"] if has_pip() else ["uv", "pip"]), "install", *words])


def has_pip() -> bool:
    """Whether this environment has pip; one that uv made has none."""
    # find_spec("pip") would do, but setuptools' import hook takes it for pip running and turns
    # its own distutils off for the rest of the process.
    try:
        metadata.distribution("pip")
    except metadata.PackageNotFoundError:
        return False
    return True


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
    return list(dict.fromkeys(_brought(extra, required))) or [DISTRIBUTION]


def _brought(extra: str, required: list[str]) -> Iterator[str]:
    """Requirements of an extra and of the extras that it takes in."""
    for each in required:
        name, _, condition = each.partition(";")
        asked = condition.replace('"', "'").replace(" ", "")
        if asked != (f"extra=='{extra}'" if extra else ""):
            continue
        if others := re.fullmatch(rf"{DISTRIBUTION}\[(.*)\]", name.strip()):
            for other in others[1].split(","):
                yield from _brought(other.strip(), required)
        else:
            yield name.strip()
