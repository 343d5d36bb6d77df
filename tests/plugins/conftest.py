"""Inputs of an attention node, the host emulation of the prologue, and the built library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastwan.errors import FastWanError
from fastwan.plugins import loader, reference
from fastwan.plugins.build import SOURCE
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes


@dataclass(frozen=True)
class Node:
    """One attention node with random inputs; rows behind the last token hold NaN."""

    region: SageAttention3
    tensors: tuple[torch.Tensor, ...]

    def operands(self) -> reference.Operands:
        """What the prologue has to write, computed on the CPU."""
        region = self.region
        rows = reference.prologue(
            *self.tensors,
            num_heads=region.attributes.num_heads,
            num_tokens=region.attributes.num_tokens,
            eps=region.attributes.eps,
        )
        return reference.pack_operands(*(x[:, : region.attributes.num_tokens] for x in rows))


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


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The prologue's device code compiled for the host."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    target = tmp_path_factory.mktemp("emulation") / "libemulation.so"
    source = SOURCE / "csrc" / "emulate_prologue.cpp"
    # A contracted multiply-add would round once where the device rounds twice; a fortified longjmp
    # refuses to change stacks.
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra"]
    flags += ["-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


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
