"""A ComfyUI of the tests' own, with the tiny bundle among its models."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastwan.comfyui import nodes
from fastwan.comfyui.install import install
from fastwan.runtime.pipeline import FastWanPipeline
from testkit.comfyui_server import PYTHON, ROOT, Server, running
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


BUNDLES = ("fastwan-qad", "fastwan-qad-native", "fastwan-qad-lora")
"""Names that the shipped workflows have."""


@pytest.fixture(scope="session")
def real() -> tuple[Path, str]:
    """Folder and Python of a real ComfyUI."""
    if missing := [name for name in (ROOT, PYTHON) if not os.environ.get(name)]:
        pytest.skip(f"no ComfyUI: {' and '.join(missing)} not set (docs/comfyui.md says how)")
    return Path(os.environ[ROOT]), os.environ[PYTHON]


@pytest.fixture(scope="session")
def server(
    real: tuple[Path, str], tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A real ComfyUI with the nodes; the tiny bundle lies there under every name."""
    base = tmp_path_factory.mktemp("comfyui")
    folder = base / "models" / "fastwan"
    folder.mkdir(parents=True)
    (base / "custom_nodes").mkdir()
    for name in BUNDLES:
        (folder / name).symlink_to(tiny_bundle)
    install(base)
    with running(base, *real) as started:
        yield started


@pytest.fixture(scope="session")
def expected(tiny_bundle: Path) -> Callable[..., np.ndarray]:
    """Frames of the tiny bundle, uint8 [9, 96, 160, 3], by prompt and seed."""
    pipeline = FastWanPipeline.from_bundle(tiny_bundle, "cpu")

    def make(prompt: str, seed: int) -> np.ndarray:
        made: np.ndarray = pipeline(prompt, seed=seed, output_type="uint8").frames[0]
        return made

    return make
