"""The kernels on a GPU: the prologue bit for bit, the attention where a library has it for the GPU.

Both libraries are tested where they are built: FP4 on compute capability 12.x, emulated on 9.0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from fastwan.errors import EnvironmentLacks
from fastwan.plugins import packing, prologue_reference
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention3 import SageAttention3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
MakeNode = Callable[..., Any]
ReadOperands = Callable[..., packing.Operands]


class OnDevice:
    """A node's tensors, output and workspace on the GPU."""

    def __init__(self, library: PluginLibrary, node: Any) -> None:
        self.library, self.region = library, node.region
        self.inputs = tuple(x.cuda() for x in node.tensors)
        region = node.region
        shape = (region.batch, region.length, region.attributes.num_heads * 128)
        self.out = torch.full(shape, 7.0, dtype=torch.bfloat16, device="cuda")
        size = library.workspace_bytes(region)
        self.workspace = torch.full((size,), 0xA5, dtype=torch.uint8, device="cuda")

    def _run(self, call: Callable[..., None]) -> None:
        call(
            self.region,
            [x.data_ptr() for x in self.inputs],
            [self.out.data_ptr()],
            self.workspace.data_ptr(),
            self.workspace.numel(),
            torch.cuda.current_stream().cuda_stream,
        )

    def prologue(self) -> None:
        self._run(self.library.enqueue_prologue)

    def whole(self) -> None:
        self._run(self.library.enqueue)

    def attention(self, region: SageAttention3) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        at, size = self.workspace.data_ptr(), self.workspace.numel()
        self.library.enqueue_attention(region, [self.out.data_ptr()], at, size, stream)

    def operands(self, read: ReadOperands, like: packing.Operands) -> packing.Operands:
        torch.cuda.synchronize()
        layout = self.library.layout(self.region)
        return read(self.workspace, layout, like, self.library.emulated)


@pytest.fixture(scope="module")
def prologue_library(each_library: PluginLibrary) -> PluginLibrary:
    """A library whose prologue has code for this GPU."""
    if each_library.emulated and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the emulated library is for compute capability 9.0")
    return each_library


@pytest.fixture(scope="module")
def attention_library(each_library: PluginLibrary) -> PluginLibrary:
    """A library whose attention has code for this GPU."""
    try:
        each_library.check_device(torch.cuda.current_device())
    except EnvironmentLacks as error:
        pytest.skip(str(error))
    return each_library


def check_operands(device: OnDevice, node: Any, read: ReadOperands) -> None:
    wanted = node.operands()
    stored = device.operands(read, wanted)
    for name, found, expected in zip(packing.Operands._fields, stored, wanted, strict=True):
        assert (found != expected).sum() == 0, name


def exact_attention(node: Any) -> torch.Tensor:
    region = node.region
    rows = prologue_reference.prologue(
        *node.tensors,
        num_heads=region.attributes.num_heads,
        num_tokens=region.attributes.num_tokens,
        eps=region.attributes.eps,
    )
    q, k, v = (x[:, : region.attributes.num_tokens].cuda().float().transpose(1, 2) for x in rows)
    out = functional.scaled_dot_product_attention(q, k, v, scale=region.attributes.softmax_scale)
    return out.transpose(1, 2).flatten(2).cpu()


def expected_output(node: Any) -> torch.Tensor:
    """The reference, its keys divided as on this GPU or for the region's multiprocessors."""
    made: torch.Tensor = node.region.reference(*(x.cuda() for x in node.tensors))[0]
    return made


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.to(found.device).float()
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("heads", [2, 12, 13])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 200, 1560])
def test_prologue_writes_the_bytes_of_the_reference(
    prologue_library: PluginLibrary,
    make_node: MakeNode,
    read_operands: ReadOperands,
    tokens: int,
    batch: int,
    heads: int,
) -> None:
    node = make_node(batch, tokens, heads, tokens + 7)
    device = OnDevice(prologue_library, node)
    device.prologue()
    check_operands(device, node, read_operands)
    assert (device.out[:, tokens:] == 0).all()
    assert (device.out[:, :tokens] == 7.0).all()


@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-30, 1e-4, 3e3, 1e30])
def test_prologue_of_small_and_large_values(
    prologue_library: PluginLibrary,
    make_node: MakeNode,
    read_operands: ReadOperands,
    factor: float,
) -> None:
    node = make_node(1, 40, 2)
    node.tensors[0].mul_(factor)
    node.tensors[2].mul_(min(factor, 1e3))
    device = OnDevice(prologue_library, node)
    device.prologue()
    check_operands(device, node, read_operands)


def test_prologue_at_full_size(
    prologue_library: PluginLibrary, make_node: MakeNode, read_operands: ReadOperands
) -> None:
    node = make_node(1, 32760, 12, 32768)
    device = OnDevice(prologue_library, node)
    device.prologue()
    check_operands(device, node, read_operands)


def test_prologue_is_captured_and_replayed(
    prologue_library: PluginLibrary, make_node: MakeNode, read_operands: ReadOperands
) -> None:
    node = make_node(1, 200, 12)
    device = OnDevice(prologue_library, node)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.prologue()
    first = node.operands()
    graph.replay()
    check_operands(device, node, read_operands)
    node.tensors[0].neg_()
    device.inputs[0].copy_(node.tensors[0])
    device.workspace.fill_(0xA5)
    graph.replay()
    assert not torch.equal(first.q, node.operands().q)
    check_operands(device, node, read_operands)


def test_another_gpu_is_refused_before_anything_is_launched(
    each_library: PluginLibrary, make_node: MakeNode
) -> None:
    major, minor = torch.cuda.get_device_capability()
    if f"{major}.{minor}" in each_library.compute_capabilities:
        pytest.skip("this GPU runs the attention")
    device = OnDevice(each_library, make_node(1, 200, 2))
    needs = r"9\.0" if each_library.emulated else r"12\.0 or 12\.1"
    with pytest.raises(
        EnvironmentLacks, match=rf"compute capability {major}\.{minor}.*needs {needs}"
    ):
        device.whole()
    torch.cuda.synchronize()
    assert (device.workspace == 0xA5).all()
    assert (device.out == 7.0).all()


@pytest.mark.parametrize("exact_max", [False, True])
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "length"),
    [
        (1, 1, 2, 1), (2, 127, 2, 127), (1, 128, 12, 128), (2, 129, 3, 256), (1, 200, 2, 207),
        (1, 1560, 12, 1664), (1, 4095, 2, 4096),
    ],
)  # fmt: skip
def test_attention_equals_the_reference(
    attention_library: PluginLibrary,
    make_node: MakeNode,
    batch: int,
    tokens: int,
    heads: int,
    length: int,
    exact_max: bool,
) -> None:
    node = make_node(batch, tokens, heads, length)
    attributes = dataclasses.replace(node.region.attributes, exact_max=exact_max)
    node = dataclasses.replace(node, region=dataclasses.replace(node.region, attributes=attributes))
    device = OnDevice(attention_library, node)
    device.whole()
    torch.cuda.synchronize()
    # ex2.approx, division with fast math and the order of sums move a value over a tie at times.
    limit = 2e-4 if attention_library.emulated else 2e-2
    assert difference(device.out, expected_output(node)) < limit
    assert (device.out[:, tokens:] == 0).all()
    assert difference(device.out[:, :tokens], exact_attention(node)) < 0.35


@pytest.mark.parametrize("exact_max", [False, True])
@pytest.mark.parametrize(
    ("tokens", "rows", "heads", "batch", "processors", "parts"),
    [
        (1921, 1921, 3, 1, 23, 2), (2048, 2055, 3, 1, 47, 2), (2049, 2056, 5, 1, 42, 2),
        (3073, 3080, 3, 1, 74, 3), (4095, 4102, 2, 1, 63, 4), (4096, 4103, 1, 2, 128, 2),
        (4096, 4103, 2, 1, 64, 1),
        # Rows behind the tokens inside a divided tile, up to its end and into the next ones.
        (2040, 2048, 3, 1, 47, 2), (2041, 2048, 2, 2, 63, 2), (1930, 2304, 3, 2, 95, 2),
        (2040, 2600, 3, 1, 20, 2), (8185, 8192, 2, 1, 127, 8), (1930, 2048, 1, 1, 15, 2),
    ],
)  # fmt: skip
def test_divided_keys_equal_the_reference(
    attention_library: PluginLibrary,
    make_node: MakeNode,
    tokens: int,
    rows: int,
    heads: int,
    batch: int,
    processors: int,
    parts: int,
    exact_max: bool,
) -> None:
    node = make_node(batch, tokens, heads, rows)
    attributes = dataclasses.replace(node.region.attributes, exact_max=exact_max)
    region = dataclasses.replace(node.region, attributes=attributes, processors=processors)
    node = dataclasses.replace(node, region=region)
    assert region.key_split(processors).parts == parts
    device = OnDevice(attention_library, node)
    device.whole()
    found = device.out.clone()
    assert (found[:, tokens:] == 0).all()
    limit = 2e-4 if attention_library.emulated else 2e-2
    assert difference(found, expected_output(node)) < limit
    device.out.fill_(7.0)
    device.attention(region)
    assert torch.equal(device.out[:, :tokens], found[:, :tokens])
    # The prologue clears the rows behind; no launch of the attention writes there.
    assert (device.out[:, tokens:] == 7.0).all()
    # Without a division every row has the bits of the published schedule; with one, those of the
    # tiles in front of it do. A divided tile of a single row may have them by chance.
    device.attention(region.on(region.tiles))
    same = (device.out == found)[:, :tokens].unflatten(-1, (heads, 128)).all(-1)
    assert bool(same.all()) == (parts == 1) or tokens % 128 == 1
    by_tile = functional.pad(same.transpose(1, 2), (0, -tokens % 128), value=True)
    whole = region.key_split(processors).whole
    assert by_tile.reshape(-1, 128).all(-1)[:whole].all()


def test_keys_are_divided_for_this_gpu_where_nothing_is_said(
    attention_library: PluginLibrary, make_node: MakeNode
) -> None:
    own = torch.cuda.get_device_properties(0).multi_processor_count
    # One tile more than a wave.
    node = make_node(1, 128 * (own + 1), 1)
    assert node.region.key_split(own).parts > 1
    device = OnDevice(attention_library, node)
    device.whole()
    found = device.out.clone()
    device.attention(node.region.on(own))
    assert torch.equal(device.out, found)
    device.attention(node.region.on(node.region.tiles))
    assert not torch.equal(device.out, found)


def test_region_is_captured_and_replayed(
    attention_library: PluginLibrary, make_node: MakeNode
) -> None:
    device = OnDevice(attention_library, make_node(1, 1560, 12))
    device.whole()
    torch.cuda.synchronize()
    direct = device.out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.whole()
    device.out.zero_()
    device.workspace.fill_(0xA5)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(device.out, direct)


def test_a_region_allocates_nothing(attention_library: PluginLibrary, make_node: MakeNode) -> None:
    device = OnDevice(attention_library, make_node(1, 200, 12))
    device.whole()  # the driver loads a kernel when it is first launched
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    for _ in range(3):
        device.whole()
        torch.cuda.synchronize()
        assert torch.cuda.mem_get_info()[0] == free
