"""The kernels on a GPU: prologue bit for bit on any, attention on compute capability 12.x."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from fastwan.errors import EnvironmentLacks
from fastwan.plugins import reference
from fastwan.plugins.loader import PluginLibrary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
MakeNode = Callable[..., Any]


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

    def operands(self) -> reference.Operands:
        torch.cuda.synchronize()
        layout, region = self.library.layout(self.region), self.region
        rows, padded = region.batch * region.attributes.num_heads, layout.padded_tokens
        heads = (region.batch, region.attributes.num_heads)
        shapes = [(padded, 64), (padded, 8)] * 2 + [(128, padded // 2), (128, padded // 16)]
        parts = []
        for name, shape in zip(reference.Operands._fields, shapes, strict=True):
            begin = getattr(layout, name)
            size = rows * shape[0] * shape[1]
            parts.append(self.workspace[begin : begin + size].view(*heads, *shape).cpu())
        return reference.Operands(*parts)


@pytest.fixture(scope="module")
def fp4_gpu(library: PluginLibrary) -> None:
    try:
        library.check_device(torch.cuda.current_device())
    except EnvironmentLacks as error:
        pytest.skip(str(error))


def exact_attention(node: Any) -> torch.Tensor:
    region = node.region
    rows = reference.prologue(
        *node.tensors,
        num_heads=region.attributes.num_heads,
        num_tokens=region.attributes.num_tokens,
        eps=region.attributes.eps,
    )
    q, k, v = (x[:, : region.attributes.num_tokens].cuda().float().transpose(1, 2) for x in rows)
    out = functional.scaled_dot_product_attention(q, k, v, scale=region.attributes.softmax_scale)
    return out.transpose(1, 2).flatten(2).cpu()


def expected_output(node: Any) -> torch.Tensor:
    region = node.region
    return reference.attention_node(
        *node.tensors,
        num_heads=region.attributes.num_heads,
        num_tokens=region.attributes.num_tokens,
        eps=region.attributes.eps,
        softmax_scale=region.attributes.softmax_scale,
        exact_max=region.attributes.exact_max,
    )


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu().float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("heads", [2, 12, 13])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 200, 1560])
def test_prologue_writes_the_bytes_of_the_reference(
    library: PluginLibrary, make_node: MakeNode, tokens: int, batch: int, heads: int
) -> None:
    node = make_node(batch, tokens, heads, tokens + 7)
    device = OnDevice(library, node)
    device.prologue()
    for name, found, expected in zip(
        reference.Operands._fields, device.operands(), node.operands(), strict=True
    ):
        assert torch.equal(found, expected), name
    assert (device.out[:, tokens:] == 0).all()
    assert (device.out[:, :tokens] == 7.0).all()


@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-30, 1e-4, 3e3, 1e30])
def test_prologue_of_small_and_large_values(
    library: PluginLibrary, make_node: MakeNode, factor: float
) -> None:
    node = make_node(1, 40, 2)
    node.tensors[0].mul_(factor)
    node.tensors[2].mul_(min(factor, 1e3))
    device = OnDevice(library, node)
    device.prologue()
    for name, found, expected in zip(
        reference.Operands._fields, device.operands(), node.operands(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_prologue_at_full_size(library: PluginLibrary, make_node: MakeNode) -> None:
    node = make_node(1, 32760, 12, 32768)
    device = OnDevice(library, node)
    device.prologue()
    for name, found, expected in zip(
        reference.Operands._fields, device.operands(), node.operands(), strict=True
    ):
        assert (found != expected).sum() == 0, name


def test_prologue_is_captured_and_replayed(library: PluginLibrary, make_node: MakeNode) -> None:
    node = make_node(1, 200, 12)
    device = OnDevice(library, node)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.prologue()
    first = node.operands()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(device.operands(), first, strict=True))
    node.tensors[0].neg_()
    device.inputs[0].copy_(node.tensors[0])
    device.workspace.fill_(0xA5)
    graph.replay()
    second = node.operands()
    assert not torch.equal(first.q, second.q)
    assert all(torch.equal(a, b) for a, b in zip(device.operands(), second, strict=True))


def test_another_gpu_is_refused_before_anything_is_launched(
    library: PluginLibrary, make_node: MakeNode
) -> None:
    if torch.cuda.get_device_capability() in ((12, 0), (12, 1)):
        pytest.skip("this GPU runs the attention")
    device = OnDevice(library, make_node(1, 200, 2))
    with pytest.raises(EnvironmentLacks, match=r"compute capability .* needs 12\.0 or 12\.1"):
        device.whole()
    torch.cuda.synchronize()
    assert (device.workspace == 0xA5).all()
    assert (device.out == 7.0).all()


@pytest.mark.usefixtures("fp4_gpu")
@pytest.mark.parametrize("exact_max", [False, True])
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "length"),
    [(1, 1, 2, 1), (2, 127, 2, 127), (1, 128, 12, 128), (2, 129, 3, 256), (1, 1560, 12, 1664)],
)
def test_attention_equals_the_reference(
    library: PluginLibrary,
    make_node: MakeNode,
    batch: int,
    tokens: int,
    heads: int,
    length: int,
    exact_max: bool,
) -> None:
    node = make_node(batch, tokens, heads, length)
    region = dataclasses.replace(node.region, exact_max=exact_max)
    node = dataclasses.replace(node, region=region)
    device = OnDevice(library, node)
    device.whole()
    torch.cuda.synchronize()
    # ex2.approx, division with fast math and the order of sums move a value over a tie at times.
    assert difference(device.out, expected_output(node)) < 2e-2
    assert (device.out[:, tokens:] == 0).all()
    assert difference(device.out[:, :tokens], exact_attention(node)) < 0.35


@pytest.mark.usefixtures("fp4_gpu")
def test_region_is_captured_and_replayed(library: PluginLibrary, make_node: MakeNode) -> None:
    device = OnDevice(library, make_node(1, 1560, 12))
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
