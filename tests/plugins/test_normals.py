"""Noise by the plugin library: to the byte torch's, and the runtime's own without it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.normals import LibraryNormals
from fastwan.runtime.device.kernels import normals_of
from fastwan.runtime.model.normal import NormalGenerator

Compile = Callable[..., ctypes.CDLL]
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math")
"""As in CMakeLists.txt."""
SHAPE_480P = (1, 21, 16, 60, 104)
INVALID_ARGUMENT = 1


class Compiled:
    """A `PluginLibrary` of one source."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def has(self, name: str) -> bool:
        return hasattr(self._library, name)

    def call(self, name: str, *arguments: Any) -> None:
        assert getattr(self._library, name)(*arguments) == 0


Draws = Callable[[int], LibraryNormals]


@pytest.fixture(scope="session", params=["wide registers", "any processor"])
def draws(
    request: pytest.FixtureRequest,
    compile_source: Compile,
    tmp_path_factory: pytest.TempPathFactory,
) -> Draws:
    flags = FLAGS if request.param == "wide registers" else (*FLAGS, "-DFASTWAN_NO_AVX2")
    library = compile_source(tmp_path_factory.mktemp("normals"), "normals.cpp", *flags)
    return partial(LibraryNormals, Compiled(library))  # type: ignore[arg-type]


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


SIZES = st.one_of(
    st.lists(st.integers(0, 6), max_size=4),
    st.tuples(st.integers(0, 5000)),
)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), shapes=st.lists(SIZES, min_size=1, max_size=4))
def test_every_shape_of_every_seed_is_that_of_numpy(
    draws: Draws, seed: int, shapes: list[Sequence[int]]
) -> None:
    """Below 16 numbers come singly; beside the last block, which is drawn anew, they are more."""
    ours, theirs = draws(seed), NormalGenerator(seed)
    for shape in shapes:
        assert same_bytes(ours.normal(shape), theirs.normal(shape))


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch takes other functions without AVX2",
)
@pytest.mark.parametrize("seed", [0, 1024, 2**64 - 1])
def test_latents_of_a_large_video_are_torchs(draws: Draws, seed: int) -> None:
    ours, theirs = draws(seed), torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(SHAPE_480P, generator=theirs, dtype=torch.bfloat16).float().numpy()
        for _ in range(2)
    )
    assert same_bytes(ours.normal(SHAPE_480P), first)
    assert same_bytes(ours.normal(SHAPE_480P), second)
    assert not same_bytes(first, second)


@pytest.mark.parametrize(
    ("fault", "status"), [("", 0), ("no state", 1), ("no numbers", 1), ("count", 1), ("used", 1)]
)
def test_what_cannot_be_drawn_is_refused(
    compile_source: Compile, tmp_path: Path, fault: str, status: int
) -> None:
    library = compile_source(tmp_path, "normals.cpp", *FLAGS)
    state = (ctypes.c_uint32 * 628)()
    assert library.fastwan_normals_seed(state, ctypes.c_uint32(3)) == 0
    if fault == "used":
        state[624] = 625
    numbers = np.empty(32, np.float32)
    done = library.fastwan_normals_draw(
        None if fault == "no state" else state,
        ctypes.c_void_p(None if fault == "no numbers" else numbers.ctypes.data),
        ctypes.c_int64(-1 if fault == "count" else 32),
    )
    assert done == status


@pytest.mark.parametrize("missing", [(), ("fastwan_normals_seed",), ("fastwan_normals_draw",)])
def test_a_library_older_than_the_functions_leaves_the_noise_to_numpy(
    missing: Sequence[str],
) -> None:
    class Older:
        def has(self, name: str) -> bool:
            return name not in missing

        def call(self, name: str, *arguments: Any) -> None:
            assert self.has(name)

    drawn = normals_of(Older())(7)  # type: ignore[arg-type]
    assert isinstance(drawn, NormalGenerator if missing else LibraryNormals)


def test_the_built_library_draws_it(library: PluginLibrary) -> None:
    ours = normals_of(library)(1024)
    assert isinstance(ours, LibraryNormals)
    assert same_bytes(ours.normal([1000]), NormalGenerator(1024).normal([1000]))
