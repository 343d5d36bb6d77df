"""Extras: what each declares is what its part of the package imports, and no more."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fastwan.install import EXTRAS
from testkit.declared import declared_requirements

MODULES = {
    "cuda-bindings": "cuda",
    "nvidia-ml-py": "pynvml",
    "nvidia-modelopt": "modelopt",
    "onnx-ir": "onnx_ir",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "python-multipart": "python_multipart",
    "scikit-image": "skimage",
    "tensorrt-cu13": "tensorrt",
    "tensorrt-lean-cu13": "tensorrt_lean",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
}
"""Module of a distribution, where it has not the distribution's name."""

DEVICE = ("runtime/device/", "runtime/emulated/")
ALL = ("export/", "engines/", "runtime/", "plugins/", "src/fastwan/")
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": (ALL, ()),
    "cpu": (("runtime/",), DEVICE),
    "gpu": (("runtime/", "src/fastwan/quality/gpu_state.py"), ("runtime/cpu/", "runtime/emulated")),
    "emulated": (("runtime/",), ("runtime/cpu/",)),
    "report": (("src/fastwan/quality/pages/",), ()),
    "serve": (("src/fastwan/serve/",), ()),
    "serve-ray": (("src/fastwan/serve/",), ()),
    "build": (ALL, DEVICE),
    "tensorrt": (("engines/", "runtime/device/"), ()),
}
"""Where the part of an extra begins, and what of it belongs to others."""

UNDECLARED = {"requests": "modelopt"}
"""A dependency that a package of others imports and does not declare."""

BY_NAME = {
    "cuda.bindings.runtime", "modelopt.torch.quantization", "pynvml", "tensorrt", "tensorrt_lean",
    "tensorrt_rtx",
}  # fmt: skip
"""Modules that are imported by their name."""

ASKED_FOR = {"cmake", "lpips", "pip", "resource", "taehv", "triton_python_backend_utils"}
"""Modules that are used where they happen to be."""


def imported(source: str) -> Iterator[str]:
    """Modules that a file imports, also by name, and not for types alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
        elif isinstance(node, ast.Constant) and node.value in BY_NAME:
            yield str(node.value)


def tops(sources: list[str]) -> set[str]:
    """Packages that files import, of others than Python and this project."""
    found = {name.partition(".")[0] for source in sources for name in imported(source)}
    return found - set(sys.stdlib_module_names) - {"fastwan"}


def sources_of(extra: str, root: Path, tracked: list[Path]) -> list[str]:
    within, without = GROUPS[extra]
    files = [
        root / file
        for file in tracked
        if file.suffix == ".py"
        and file.as_posix().startswith(within)
        and not file.as_posix().startswith(without or " ")
        and file.name != "install.py"  # it names all of them
    ]
    assert files
    return [file.read_text() for file in files]


def names_of(requirements: list[str]) -> set[str]:
    return {
        MODULES.get(name, name)
        for each in requirements
        if (name := Requirement(each).name) != "fastwan-export"
    }


@pytest.mark.parametrize("extra", GROUPS)
def test_what_an_extra_declares_is_used(extra: str, root: Path, tracked: list[Path]) -> None:
    declared = names_of(declared_requirements(root)[extra])
    used = tops(sources_of(extra, root, tracked))
    assert declared
    assert declared - used - UNDECLARED.keys() == set()


def test_what_is_used_is_declared(root: Path, tracked: list[Path]) -> None:
    declared = {each for name in declared_requirements(root).values() for each in names_of(name)}
    used = tops(sources_of("", root, tracked))
    assert "google" in used  # of protobuf, which onnx brings
    assert used - declared - ASKED_FOR - {"google"} == set()


@pytest.mark.parametrize("name", UNDECLARED)
def test_what_another_package_forgot_to_declare_is_still_needed(name: str) -> None:
    package = importlib.util.find_spec(UNDECLARED[name])
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    users = [f for f in folder.rglob("*.py") if re.search(rf"import {name}\b", f.read_text())]
    assert users


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("def run():\n    import requests", {"requests"}),
        ("from requests.api import get", {"requests"}),
        ("import_module('tensorrt_rtx')", {"tensorrt_rtx"}),
        ("if TYPE_CHECKING:\n    import requests", set()),
        ("import json", set()),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source: str, seen: set[str]) -> None:
    assert tops([source]) == seen


def test_the_modules_of_an_extra_are_those_it_declares(root: Path) -> None:
    """What `fastwan.install` advises by is what pip would bring."""
    declared = declared_requirements(root)
    assert EXTRAS.keys() < declared.keys()
    for extra, modules in EXTRAS.items():
        brought = names_of(declared[extra])
        if extra == "build":
            brought |= names_of(declared["cpu"]) | names_of(declared["report"])
        if extra == "serve-ray":
            brought |= names_of(declared["serve"])
        found = {each.partition(".")[0] for each in modules}
        assert found <= brought
        if extra != "dev":  # its other packages are for tests alone
            assert found == brought


def test_one_package_has_one_range(root: Path) -> None:
    ranges: dict[str, set[str]] = {}
    for requirements in declared_requirements(root).values():
        for each in map(Requirement, requirements):
            if each.name != "fastwan-export":
                ranges.setdefault(each.name, set()).add(str(each.specifier))
    assert len(ranges) > 20
    assert {name: found for name, found in ranges.items() if len(found) > 1} == {}
