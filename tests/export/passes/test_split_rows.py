"""`split_statistics` where rows are scaled behind the GEMM, as an FP8 linear's are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_precision import lower_precision
from fastwan.export.passes.split_statistics import SUFFIX, split_statistics

ROWS, WIDTH = 96, 64
TEXT = """
g (bfloat16[1, 96, 64] y, float[1, 96, 1] row, float factor, bfloat16[64] bias, int64[1] last)
  => (bfloat16[1, 96, 64] out) {
    both = Mul(row, factor)
    wide = Cast <to: int = 1> (y)
    scaled = Mul(wide, both)
    rounded = Cast <to: int = 16> (scaled)
    biased = Add(rounded, bias)
    x = Cast <to: int = 1> (biased)
    square = Mul(x, x)
    mean = ReduceMean <keepdims: int = 1> (square, last)
    root = Sqrt(mean)
    %s
    again = Cast <to: int = 1> (%s)
    normed = Div(again, root)
    out = Cast <to: int = 16> (normed)
}
"""
SAMPLE = """
g (bfloat16[1, 96, 64] y, float[1, 96, 1] row, float factor, bfloat16[64] bias, int64[1] last,
   int64[1] from, int64[1] to, int64[1] axis, int64[1] every, int64[3] heads)
  => (bfloat16[1, %d, 64] sample, float[1, 96, 1] mean, bfloat16[32, 96, 2] out) {
    both = Mul(row, factor)
    wide = Cast <to: int = 1> (y)
    scaled = Mul(wide, both)
    rounded = Cast <to: int = 16> (scaled)
    biased = Add(rounded, bias)
    x = Cast <to: int = 1> (biased)
    square = Mul(x, x)
    mean = ReduceMean <keepdims: int = 1> (square, last)
    sample = Slice(biased, from, to, axis, every)
    rows = Reshape(%s, heads)
    out = Transpose <perm = [1, 0, 2]> (rows)
}
"""
BRANCHES = {
    "at the bias": ("", "biased"),
    "before the bias": ("other = Add(rounded, bias)", "other"),
    "nowhere": ("", "y"),
}


def model(kit: SimpleNamespace, branch: str) -> ir.Model:
    generator = torch.Generator().manual_seed(0)
    made: ir.Model = kit.graph(
        TEXT % BRANCHES[branch],
        factor=ir.tensor(np.float32(0.3)),
        bias=kit.tensor(torch.randn(WIDTH, generator=generator).bfloat16()),
        last=ir.tensor(np.array([-1])),
    )
    for index, node in enumerate(made.graph):
        node.name = f"node_{index}"
    shapes = {"both": [1, ROWS, 1], "mean": [1, ROWS, 1], "root": [1, ROWS, 1]}
    for node in made.graph:
        value = node.outputs[0]
        low = value.name in ("rounded", "biased", "other", "out")
        value.type = ir.TensorType(ir.DataType.BFLOAT16 if low else ir.DataType.FLOAT)
        value.shape = ir.Shape(shapes.get(str(value.name), [1, ROWS, WIDTH]))
    return made


def twins(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph if SUFFIX in str(node.name)]


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_statistic_has_a_path_of_its_own_from_the_gemm(kit: SimpleNamespace, branch: str) -> None:
    whole = model(kit, branch)
    split, changed = split_statistics(clone(whole))
    assert changed == (branch != "nowhere")
    if not changed:
        assert twins(split.graph) == []
        return
    # The factor of rows exists twice, what it is made of by row once; ones come first.
    assert twins(split.graph) == ["Mul", "Cast", "Mul", "Mul", "Cast", "Add", "Cast"]
    (first,) = (n for n in split.graph if n.name and n.name.endswith(f"{SUFFIX}/own"))
    assert first.inputs[0] is not None
    assert first.inputs[0].name == "y"
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "y": torch.randn(1, ROWS, WIDTH, generator=generator).bfloat16().float(),
        "row": torch.rand(1, ROWS, 1, generator=generator),
    }
    before, after = (kit.run(lower_precision(each)[0], inputs)["out"] for each in (whole, split))
    assert torch.equal(before, after)


def sampled(kit: SimpleNamespace, every: int, read: str = "y") -> ir.Model:
    """A statistic and a slice of what it is of; heads of `read` are turned."""
    count = -(-ROWS // every)
    numbers = {"from": [0], "to": [ROWS], "axis": [1], "every": [every], "heads": [96, 32, 2]}
    made: ir.Model = kit.graph(
        SAMPLE % (count, read),
        factor=ir.tensor(np.float32(0.3)),
        bias=kit.tensor(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()),
        last=ir.tensor(np.array([-1])),
        **{name: ir.tensor(np.array(value)) for name, value in numbers.items()},
    )
    shapes = {
        "both": [1, ROWS, 1], "mean": [1, ROWS, 1], "sample": [1, count, WIDTH],
        "rows": [96, 32, 2], "out": [32, 96, 2],
    }  # fmt: skip
    for index, node in enumerate(made.graph):
        node.name, value = f"node_{index}", node.outputs[0]
        low = value.name in ("rounded", "biased", "sample", "rows", "out")
        value.type = ir.TensorType(ir.DataType.BFLOAT16 if low else ir.DataType.FLOAT)
        value.shape = ir.Shape(shapes.get(str(value.name), [1, ROWS, WIDTH]))
    return made


@pytest.mark.parametrize(("every", "moved"), [(16, True), (4, False)])
def test_a_sample_of_few_rows_is_made_with_the_statistic(
    kit: SimpleNamespace, every: int, moved: bool
) -> None:
    split, changed = split_statistics(sampled(kit, every))
    assert changed
    (node,) = (node for node in split.graph if node.op_type == "Slice")
    assert node.inputs[0] is not None
    assert (SUFFIX in str(node.inputs[0].name)) == moved


@pytest.mark.parametrize(("read", "split"), [("y", True), ("biased", False)])
def test_a_norm_whose_heads_stay_in_rows_is_one_kernel(
    kit: SimpleNamespace, read: str, split: bool
) -> None:
    assert split_statistics(sampled(kit, 16, read))[1] == split
