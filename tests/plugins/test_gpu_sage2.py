"""SageAttention2++ on a GPU: its operands byte for byte, its output against the reference."""

from __future__ import annotations

import ctypes
import dataclasses

import pytest
import torch
from torch import Tensor

from fastwan.errors import EnvironmentLacks
from fastwan.plugins import sage2_reference
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention2 import Sage2Attributes, SageAttention2
from fastwan.plugins.sage2_halves import Sage2Run, differing_bytes
from fastwan.quality.selftest.regions import node_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
PER_WARP = pytest.mark.parametrize("per_warp", [False, True], ids=["thread", "warp"])
ROW_SCALED = pytest.mark.parametrize("row_scaled", [False, True], ids=["rows", "scaled rows"])
FULL = (1, 32760, 12, 32768)


@pytest.fixture(scope="module")
def sage2_library(each_library: PluginLibrary) -> PluginLibrary:
    """A library with the kernels for this GPU."""
    device = ctypes.c_int(torch.cuda.current_device())
    try:
        each_library.call("fastwan_sage2_device_supported", device)
    except EnvironmentLacks as error:
        pytest.skip(str(error))
    return each_library


def made(
    library: PluginLibrary,
    shape: tuple[int, int, int, int],
    per_warp: bool,
    factor: float = 1.0,
    row_scaled: bool = False,
) -> Sage2Run:
    """A region of batch, tokens, heads and rows with random inputs."""
    batch, tokens, heads, rows = shape
    attributes = Sage2Attributes(heads, tokens, per_warp, row_scaled=row_scaled)
    region = SageAttention2(batch, rows, attributes)
    qkv, qkv_scale, qkv_bias, *others = node_inputs(region)
    inputs = (qkv.mul_(factor), qkv_scale, qkv_bias.mul_(min(factor, 1e3)), *others)
    return Sage2Run(library, region, [x.cuda() for x in inputs])


def rows_of(run: Sage2Run) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of the true tokens, on the CPU: a GPU divides a mean with another rounding."""
    attributes = run.region.attributes
    return sage2_reference.true_rows(
        *(x.cpu() for x in run.inputs),
        num_heads=attributes.num_heads,
        num_tokens=attributes.num_tokens,
        eps=attributes.eps,
    )


def granularity(run: Sage2Run) -> sage2_reference.Granularity:
    grained = sage2_reference.Granularity
    return grained.WARP if run.region.attributes.per_warp else grained.THREAD


def check_operands(run: Sage2Run) -> None:
    run.prologue()
    q, k, v = rows_of(run)
    wanted = sage2_reference.quantise(q, k, v, granularity(run))
    wrong = differing_bytes(run.operands(wanted), wanted)
    assert not any(wrong.values()), wrong
    tokens = run.region.attributes.num_tokens
    assert (run.out[:, :tokens] == 7.0).all()
    assert (run.out[:, tokens:] == 0.0).all()


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@ROW_SCALED
@PER_WARP
@pytest.mark.parametrize("heads", [2, 12, 13])
@pytest.mark.parametrize("tokens", [1, 31, 63, 64, 127, 128, 129, 200, 1560])
def test_the_prologue_writes_the_bytes_of_the_reference(
    sage2_library: PluginLibrary, tokens: int, heads: int, per_warp: bool, row_scaled: bool
) -> None:
    shape = (2, tokens, heads, tokens + 7)
    check_operands(made(sage2_library, shape, per_warp, row_scaled=row_scaled))


@ROW_SCALED
@PER_WARP
def test_the_prologue_at_full_size(
    sage2_library: PluginLibrary, per_warp: bool, row_scaled: bool
) -> None:
    check_operands(made(sage2_library, FULL, per_warp, row_scaled=row_scaled))


@PER_WARP
@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-30, 1e-4, 3e3, 1e30])
def test_the_prologue_of_small_and_large_values(
    sage2_library: PluginLibrary, factor: float, per_warp: bool
) -> None:
    check_operands(made(sage2_library, (1, 70, 2, 70), per_warp, factor))


@ROW_SCALED
@PER_WARP
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 2, 1), (2, 63, 2, 64), (2, 127, 2, 127), (1, 128, 12, 128), (2, 129, 3, 256),
     (1, 200, 2, 207), (1, 1560, 12, 1664), (1, 4095, 2, 4096)],
)  # fmt: skip
def test_the_attention_equals_the_reference(
    sage2_library: PluginLibrary,
    shape: tuple[int, int, int, int],
    per_warp: bool,
    row_scaled: bool,
) -> None:
    run = made(sage2_library, shape, per_warp, row_scaled=row_scaled)
    attributes = dataclasses.asdict(run.region.attributes)
    del attributes["per_warp"], attributes["row_scaled"]
    hopper = torch.cuda.get_device_capability() == (9, 0)
    wanted = sage2_reference.attention_node(
        *run.inputs, **attributes, granularity=granularity(run), sum_keys=16 if hopper else 32
    )
    assert difference(run.whole(), wanted) < 2e-4
    assert difference(run.out, run.region.reference(*run.inputs)[0]) < run.region.limit
    assert (run.out[:, shape[1] :] == 0).all()


def test_a_region_is_captured_and_replayed_and_allocates_nothing(
    sage2_library: PluginLibrary,
) -> None:
    run = made(sage2_library, (1, 1560, 12, 1560), per_warp=False)
    direct = run.whole().clone()  # the driver loads a kernel when it is first launched
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    run.whole()
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] == free
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.whole()
    run.out.zero_()
    run.workspace.fill_(0xA5)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(run.out, direct)


def test_the_published_package_computes_the_same(sage2_library: PluginLibrary) -> None:
    """On the GPUs whose kernel it is; its divisions and its mean of K are rounded otherwise."""
    published = pytest.importorskip("sageattention")
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) not in ((8, 9), (12, 0), (12, 1)):
        pytest.skip("sageattention has SageAttention2++ for compute capability 8.9 and 12.x")
    run = made(sage2_library, (1, 4096, 12, 4096), per_warp=major == 12)
    q, k, v = (x.cuda() for x in rows_of(run))
    wanted = published.sageattn(q, k, v, tensor_layout="NHD", is_causal=False)
    assert difference(run.whole(), wanted.flatten(2)) < 2e-3
