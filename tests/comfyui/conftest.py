"""A ComfyUI of the tests' own, with the tiny bundle among its models."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fastwan.comfyui import nodes
from testkit.fake_comfyui import Executor, FakeComfyUI


@pytest.fixture
def models(tmp_path: Path, tiny_bundle: Path) -> Path:
    """Model folders of a ComfyUI; the tiny bundle lies there as ``some/tiny``."""
    folder = tmp_path / "models" / "fastwan" / "some"
    folder.mkdir(parents=True)
    (folder / "tiny").symlink_to(tiny_bundle)
    return tmp_path / "models"


@pytest.fixture
def start(models: Path) -> Iterator[Callable[..., FakeComfyUI]]:
    """Start a ComfyUI; keyword arguments are those of `FakeComfyUI`."""
    with ExitStack() as stack:

        def run(**options: Any) -> FakeComfyUI:
            comfyui = stack.enter_context(FakeComfyUI(models, **options).running())
            importlib.reload(nodes)
            return comfyui

        yield run
    importlib.reload(nodes)


@pytest.fixture
def comfyui(start: Callable[..., FakeComfyUI]) -> FakeComfyUI:
    return start()


@pytest.fixture
def executor(comfyui: FakeComfyUI) -> Executor:
    return Executor(nodes.NODE_CLASS_MAPPINGS)
