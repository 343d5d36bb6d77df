"""The kernels between two GEMMs on a GPU, against the torch reference on the same GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.cross_attention import CrossAttention
from fastwan.plugins.regions.glue import GlueOp
from fastwan.quality.region_figures import difference
from fastwan.quality.selftest.glue import glue_inputs, glue_outputs
from testkit.glue_nodes import BOUNDARIES, FULL, SMALL, factors_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.fixture(scope="module")
def glue_library(each_library: PluginLibrary) -> PluginLibrary:
    """A library whose glue has code for this GPU."""
    if each_library.emulated and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the emulated library is for compute capability 9.0")
    return each_library


def enqueue(library: PluginLibrary, op: GlueOp, inputs: list[Tensor], out: list[Tensor]) -> None:
    stream = torch.cuda.current_stream().cuda_stream
    addresses = [[x.data_ptr() for x in tensors] for tensors in (inputs, out)]
    library.enqueue(op, *addresses, 0, 0, stream)


def check(op: GlueOp, inputs: list[Tensor], out: list[Tensor]) -> None:
    torch.cuda.synchronize()
    assert difference(op, out, op.reference(*inputs)) <= op.limit


@pytest.mark.parametrize("op", BOUNDARIES, ids=str)
def test_a_kernel_writes_what_the_reference_does(glue_library: PluginLibrary, op: GlueOp) -> None:
    inputs, out = glue_inputs(op, "cuda"), glue_outputs(op, "cuda")
    enqueue(glue_library, op, inputs, out)
    check(op, inputs, out)


@pytest.mark.parametrize("op", FULL, ids=lambda op: op.op)
def test_a_kernel_at_full_size(glue_library: PluginLibrary, op: GlueOp) -> None:
    inputs, out = glue_inputs(op, "cuda"), glue_outputs(op, "cuda")
    enqueue(glue_library, op, inputs, out)
    check(op, inputs, out)


@pytest.mark.parametrize(
    ("op", "factor"),
    [pytest.param(op, factor, id=f"{op.op}-{factor}") for op in SMALL for factor in factors_of(op)],
)
def test_small_and_large_values(glue_library: PluginLibrary, op: GlueOp, factor: float) -> None:
    inputs, out = glue_inputs(op, "cuda"), glue_outputs(op, "cuda")
    inputs[0] = (inputs[0].double() * factor).clamp(-1.5e38, 1.5e38).bfloat16()
    enqueue(glue_library, op, inputs, out)
    check(op, inputs, out)


def test_one_graph_serves_prompts_of_every_length(glue_library: PluginLibrary) -> None:
    (op,) = (op for op in SMALL if isinstance(op, CrossAttention))
    inputs, out = glue_inputs(op, "cuda"), glue_outputs(op, "cuda")
    inputs[3:5] = (x.nan_to_num(0.5) for x in inputs[3:5])
    enqueue(glue_library, op, inputs, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        enqueue(glue_library, op, inputs, out)
    for tokens in (1, 63, 64, 100):
        inputs[5][:tokens] = 0.0
        inputs[5][tokens:] = -torch.inf
        inputs[6].fill_(-(-tokens // 64))
        graph.replay()
        check(op, inputs, out)


@pytest.mark.parametrize("op", SMALL, ids=lambda op: op.op)
def test_a_kernel_is_captured_and_replayed(glue_library: PluginLibrary, op: GlueOp) -> None:
    inputs, out = glue_inputs(op, "cuda"), glue_outputs(op, "cuda")
    enqueue(glue_library, op, inputs, out)  # the driver loads a kernel when it is first launched
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        enqueue(glue_library, op, inputs, out)
    before = [x.clone() for x in out]
    inputs[0].neg_()
    graph.replay()
    check(op, inputs, out)
    changed = before[-2:][0], out[-2:][0]  # codes, or the only output
    assert not torch.equal(*(each.view(torch.uint8) for each in changed))
    enqueue(glue_library, op, inputs, out)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] >= free - (32 << 20)
