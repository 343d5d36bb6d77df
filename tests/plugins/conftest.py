"""Inputs of an attention node, the host emulation of the prologue, and the built library."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastwan.errors import FastWanError
from fastwan.plugins import loader, packing
from fastwan.plugins.regions.attention import SageTensors
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.quality.selftest.attention_kinds import expected_operands, stored_operands
from fastwan.quality.selftest.regions import compile_for_host


@dataclass(frozen=True)
class Node:
    """One attention node with random inputs; rows behind the last token hold NaN."""

    region: SageAttention3
    tensors: tuple[torch.Tensor, ...]

    def operands(self) -> packing.Operands:
        """What the prologue has to write, computed on the CPU."""
        return expected_operands(self.region, SageTensors(*self.tensors))


def random_node(batch: int, tokens: int, heads: int, length: int | None = None) -> Node:
    """A node with `tokens` tokens in `length` rows."""
    length = tokens if length is None else length
    generator = torch.Generator().manual_seed(tokens * heads + batch)
    channels = heads * 128

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    qkv = (normal(batch, length, 3 * channels) * 2).bfloat16()
    qkv[:, tokens:] = float("nan")
    angle = torch.rand(length, 64, generator=generator) * 6.3
    tensors = (
        qkv,
        torch.tensor([0.5, 0.7, 1.1]),
        normal(3 * channels).bfloat16(),
        (normal(channels) * 0.2 + 1).bfloat16(),
        (normal(channels) * 0.2 + 1).bfloat16(),
        angle.cos(),
        angle.sin(),
    )
    region = SageAttention3(batch, length, SageAttributes(heads, tokens))
    return Node(region, tensors)


@pytest.fixture(scope="session")
def make_node() -> Callable[..., Node]:
    """`random_node`, as a fixture because test modules do not import one another."""
    return random_node


def compiled_for_host(folder: Path, source: str, *definitions: str) -> ctypes.CDLL:
    """Device code compiled for the host: ``csrc/<source>``."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return compile_for_host(folder, source, *definitions)


@pytest.fixture(scope="session")
def compile_source() -> Callable[..., ctypes.CDLL]:
    """`compiled_for_host`, as a fixture because test modules do not import one another."""
    return compiled_for_host


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The prologue's device code."""
    return compiled_for_host(tmp_path_factory.mktemp("prologue"), "emulate_prologue.cpp")


@pytest.fixture(scope="session")
def emulation_for_hopper(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The prologue's device code as the emulated library has it."""
    folder = tmp_path_factory.mktemp("emulated_prologue")
    return compiled_for_host(folder, "emulate_prologue.cpp", "-DFASTWAN_EMULATED=1")


@pytest.fixture(scope="session")
def mma_emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The emulated MMA's device code."""
    return compiled_for_host(tmp_path_factory.mktemp("mma"), "emulate_mma.cpp")


@pytest.fixture(scope="session")
def sage2_emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The device code of SageAttention2++ with MMAs on e4m3."""
    return compiled_for_host(tmp_path_factory.mktemp("sage2"), "emulate_sage2.cpp")


@pytest.fixture(scope="session")
def sage2_wide_emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The same as compute capability 9.0 runs it, with values in fp16."""
    folder = tmp_path_factory.mktemp("sage2_wide")
    return compiled_for_host(folder, "emulate_sage2.cpp", "-DFASTWAN_SAGE2_WIDE=1")


@pytest.fixture(scope="session")
def glue_emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The device code of the kernels between two GEMMs."""
    return compiled_for_host(tmp_path_factory.mktemp("glue"), "emulate_glue.cpp")


@pytest.fixture(scope="session")
def library_path() -> Path:
    """The built library, from $FASTWAN_PLUGIN_LIBRARY or build/plugins."""
    try:
        return loader.find_library()
    except FastWanError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def library(library_path: Path) -> loader.PluginLibrary:
    return loader.PluginLibrary(library_path)


@pytest.fixture(scope="session")
def emulated_library() -> loader.PluginLibrary:
    """The built emulated library, as `loader.find_library` finds it."""
    try:
        path = loader.find_library(emulated=True)
    except FastWanError as error:
        pytest.skip(str(error))
    return loader.PluginLibrary(path, emulated=True)


@pytest.fixture(scope="session", params=["fp4", "emulated"])
def each_library(request: pytest.FixtureRequest) -> loader.PluginLibrary:
    """Each of the two libraries that is built."""
    name = "emulated_library" if request.param == "emulated" else "library"
    found: loader.PluginLibrary = request.getfixturevalue(name)
    return found


@pytest.fixture(scope="session")
def read_operands() -> Callable[..., packing.Operands]:
    """`stored_operands`, as a fixture because test modules do not import one another."""
    return stored_operands
