"""The loop's small kernels: what the library refuses anywhere, what they compute on a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.errors import BadInput
from fastwan.plugins.elementwise import CastDesc, CombineDesc, cast_desc, combine_desc
from fastwan.plugins.loader import PluginLibrary

SUMS = [[(0, 1.0), (1, -0.99)], [(0, 0.857), (0, 0.1428), (2, 0.7), (1, -0.1428)]]
DTYPES = ["float32", "bfloat16", "float16"]
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


def test_structures_have_the_size_that_c_gives_them() -> None:
    assert ctypes.sizeof(CombineDesc) == 4 * (3 + 8 + 2 + 16) + 4 + 8 * 16 + 8
    assert ctypes.sizeof(CastDesc) == 4 * 4 + 8 * 3


def test_descriptions_hold_what_they_are_given() -> None:
    desc = combine_desc(DTYPES, SUMS, 77)
    assert (desc.num_terms, desc.num_sums, desc.elements) == (3, 2, 77)
    assert list(desc.counts) == [2, 4]
    assert list(desc.indices[1])[:4] == [0, 0, 2, 1]
    assert list(desc.weights[0])[:2] == [1.0, -0.99]
    with pytest.raises(BadInput, match="too many"):
        combine_desc(["float32"] * 9, [[(0, 1.0)]], 1)
    with pytest.raises(BadInput, match="no kernel for int32"):
        combine_desc(["int32"], [[(0, 1.0)]], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"struct_bytes": 8}, "another interface"),
        ({"num_terms": 0}, "out of range"),
        ({"num_sums": 3}, "out of range"),
        ({"elements": 0}, "out of range"),
    ],
)
def test_the_library_refuses_wrong_sums(
    library: PluginLibrary, change: dict[str, int], message: str
) -> None:
    desc = combine_desc(DTYPES, SUMS, 64)
    for name, value in change.items():
        setattr(desc, name, value)
    with pytest.raises(BadInput, match=message):
        library.enqueue_combine(desc, [4096, 8192, 12288], [16384, 20480], 0)


@pytest.mark.parametrize(
    ("terms", "outputs", "message"),
    [
        ([4096, 0, 12288], [16384, 20480], "term 1 is null"),
        ([4097, 8192, 12288], [16384, 20480], "term 0 is null, misaligned"),
        ([4096, 8192, 12288], [16384, 0], "sum 1 has no output"),
    ],
)
def test_the_library_refuses_wrong_addresses(
    library: PluginLibrary, terms: list[int], outputs: list[int], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        library.enqueue_combine(combine_desc(DTYPES, SUMS, 64), terms, outputs, 0)


@pytest.mark.parametrize(
    ("rows", "target", "message"),
    [((0, 4, 4), 8192, "out of range"), ((2, 4, 3), 8192, "out of range"), ((2, 4, 4), 1, "null")],
)
def test_the_library_refuses_wrong_casts(
    library: PluginLibrary, rows: tuple[int, int, int], target: int, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        library.enqueue_cast(cast_desc("float32", "bfloat16", rows), 4096, target, 0)


class TestOnAGpu:
    pytestmark = gpu

    def test_sums_are_those_of_numpy_to_the_bit(self, library: PluginLibrary) -> None:
        generator = torch.Generator().manual_seed(0)
        count = 1_000_003
        terms = [torch.randn(count, generator=generator).to(TORCH[name]) for name in DTYPES]
        outputs = [torch.empty(count, device="cuda") for _ in SUMS]
        on_device = [term.cuda() for term in terms]
        library.enqueue_combine(
            combine_desc(DTYPES, SUMS, count),
            [term.data_ptr() for term in on_device],
            [output.data_ptr() for output in outputs],
            torch.cuda.current_stream().cuda_stream,
        )
        torch.cuda.synchronize()
        for output, row in zip(outputs, SUMS, strict=True):
            total = np.zeros(count)
            for index, weight in row:
                total += weight * terms[index].double().numpy()
            np.testing.assert_array_equal(output.cpu().numpy(), total.astype(np.float32))

    @pytest.mark.parametrize("source", DTYPES)
    @pytest.mark.parametrize("target", DTYPES)
    def test_casts_round_like_torch_and_close_gaps(
        self, library: PluginLibrary, source: str, target: str
    ) -> None:
        whole: Any = torch.randn(16, 21, 624, generator=torch.Generator().manual_seed(1)) * 100
        whole = whole.to(TORCH[source]).cuda()
        part = whole[:, 3]
        out = torch.empty(part.shape, dtype=TORCH[target], device="cuda")
        library.enqueue_cast(
            cast_desc(source, target, (16, 624, 21 * 624)),
            part.data_ptr(),
            out.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
        torch.cuda.synchronize()
        torch.testing.assert_close(out, part.to(TORCH[target]), rtol=0, atol=0)
