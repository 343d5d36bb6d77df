"""SageAttention2++ on the GPU at hand against its reference: an item of first_contact.py.

Operands byte for byte against the reference on the CPU, with and without scales of rows; the output
against the reference and against exact attention, beside bf16 and FP4; times beside torch's own
attentions, in turns.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contact_attention import replay
from cuda_timing import milliseconds
from figure_sources import ROOT, SAGE2, sources
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastwan.errors import EnvironmentLacks
from fastwan.plugins import sage2_reference
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention2 import Sage2Attributes, SageAttention2
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.plugins.sage2_halves import Sage2Run, differing_bytes
from fastwan.plugins.sage2_reference import Granularity
from fastwan.quality.selftest.regions import node_inputs

Shape = tuple[int, int, int, int]
FULL: Shape = (1, 32760, 12, 32768)
SHAPES: tuple[Shape, ...] = (
    (1, 1, 12, 1), (2, 63, 2, 64), (2, 127, 12, 127), (1, 128, 12, 128), (2, 129, 3, 256),
    (1, 200, 12, 207), (1, 1560, 12, 1664), (1, 4095, 12, 4096),
)  # fmt: skip
"""Batch, tokens, heads, rows: each side of a tile of 64 keys and of 128 queries."""

LIMIT = 2e-4
"""Of the relative L2 difference from the reference with the sums of this GPU's MMA."""

OFFSET = 4.0
"""What the bias of K and V is larger by in the second of the inputs at full size."""
_EXACT_EACH = 16  # rows apart that are compared with exact attention in fp64
_ROUNDS, _REPEATS = 9, 4


class Inputs:
    """Random inputs of a region on the GPU, and the rows of q, k, v that it makes of them.

    A GPU divides the mean of squares with another rounding, so the rows are made on the CPU.
    """

    def __init__(self, shape: Shape, offset: float = 0.0, row_scaled: bool = False) -> None:
        batch, tokens, heads, rows = shape
        attributes = Sage2Attributes(heads, tokens, per_warp=False, row_scaled=row_scaled)
        region = SageAttention2(batch, rows, attributes)
        qkv, qkv_scale, qkv_bias, *others = node_inputs(region)
        qkv_bias[region.channels :] *= 1 + offset
        tensors = (qkv, qkv_scale, qkv_bias, *others)
        q, k, v = sage2_reference.true_rows(
            *tensors, num_heads=heads, num_tokens=tokens, eps=attributes.eps
        )
        self.row_scaled = row_scaled
        self.tensors = tuple(x.cuda() for x in tensors)
        self.rows = q.cuda(), k.cuda(), v.cuda()


def library_of_this_gpu() -> PluginLibrary:
    """A library with these kernels for this GPU.

    Raises:
        EnvironmentLacks: none is built, or the GPU has none of their compute capabilities.
    """
    reasons = []
    for emulated in (True, False):
        try:
            library = PluginLibrary(emulated=emulated)
            device = ctypes.c_int(torch.cuda.current_device())
            library.call("fastwan_sage2_device_supported", device)
            return library
        except EnvironmentLacks as error:
            reasons.append(error.what)
    raise EnvironmentLacks("; ".join(reasons), fix="fastwan-export build-plugin [--emulated]")


class Node:
    """One region with random inputs on the GPU, and what it has to compute of them."""

    def __init__(
        self, library: PluginLibrary, shape: Shape, granularity: Granularity, given: Inputs
    ) -> None:
        batch, tokens, heads, rows = shape
        per_warp = granularity is Granularity.WARP
        attributes = Sage2Attributes(heads, tokens, per_warp, row_scaled=given.row_scaled)
        region = SageAttention2(batch, rows, attributes)
        self.granularity, self.rows = granularity, given.rows
        self.run = Sage2Run(library, region, given.tensors)

    def compare(self) -> dict[str, Any]:
        """Operands and output against the reference."""
        region, run = self.run.region, self.run
        tokens = region.attributes.num_tokens
        wanted = sage2_reference.quantise(*self.rows, self.granularity)
        run.prologue()
        on_cpu = type(wanted)(*(x.cpu() for x in wanted))
        wrong = differing_bytes(run.operands(on_cpu), on_cpu)
        hopper = torch.cuda.get_device_capability() == (9, 0)
        expected = sage2_reference.attend(
            wanted, tokens, region.attributes.softmax_scale, self.granularity,
            sum_keys=16 if hopper else 32,
        ).flatten(2)  # fmt: skip
        found = run.whole()
        difference = found[:, :tokens].float() - expected.float()
        return {
            "batch": region.batch,
            "tokens": tokens,
            "heads": region.attributes.num_heads,
            "rows": region.length,
            "granularity": str(self.granularity),
            "row_scaled": region.attributes.row_scaled,
            "operand_bytes": sum(x.numel() * x.element_size() for x in wanted),
            "operand_bytes_that_differ": sum(wrong.values()),
            "relative_l2": float(difference.norm() / expected.float().norm()),
            "largest_difference": float(difference.abs().max()),
            "share_of_equal_elements": float((found[:, :tokens] == expected).float().mean()),
            "padding_is_zero": bool((found[:, tokens:] == 0).all()),
        }


def compared(library: PluginLibrary, given: Inputs, shape: Shape) -> list[dict[str, Any]]:
    """The node of the same inputs in both granularities against the reference."""
    return [Node(library, shape, granularity, given).compare() for granularity in Granularity]


def exact_rows(rows: tuple[Tensor, ...]) -> Tensor:
    """Exact attention of one query in `_EXACT_EACH`, computed in fp64; [1, rows, C]."""
    q, k, v = (x[0].transpose(0, 1) for x in rows)
    heads = []
    for head in range(q.shape[0]):
        scores = q[head, ::_EXACT_EACH].double() @ k[head].double().T * q.shape[-1] ** -0.5
        heads.append(torch.softmax(scores, -1) @ v[head].double())
    return torch.stack(heads, 1).flatten(1).unsqueeze(0)


def own_attention(given: Inputs, backend: SDPBackend) -> Callable[[], Tensor]:
    """Attention of the same rows by torch."""
    q, k, v = (x.transpose(1, 2).contiguous() for x in given.rows)

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(q, k, v)

    return call


def fp4_output(library: PluginLibrary, node: Node) -> Tensor | None:
    """Output of the FP4 attention on the same inputs; None where the library has none here."""
    region = node.run.region
    old = SageAttributes(region.attributes.num_heads, region.attributes.num_tokens)
    try:
        library.check_device(torch.cuda.current_device())
    except EnvironmentLacks:
        return None
    other = SageAttention3(region.batch, region.length, old)
    workspace = torch.empty(library.workspace_bytes(other), dtype=torch.uint8, device="cuda")
    out = torch.empty_like(node.run.out)
    library.enqueue(
        other, [x.data_ptr() for x in node.run.inputs], [out.data_ptr()], workspace.data_ptr(),
        workspace.numel(), torch.cuda.current_stream().cuda_stream,
    )  # fmt: skip
    torch.cuda.synchronize()
    return out


def errors(library: PluginLibrary, offset: float) -> dict[str, Any]:
    """Comparisons at full size, and relative L2 errors against exact attention."""
    record: dict[str, Any] = {"offset": offset, "error_against_exact_attention": {}}
    found: dict[str, Tensor | None] = {}
    given = Inputs(FULL, offset)
    for granularity in Granularity:
        node = Node(library, FULL, granularity, given)
        record[str(granularity)] = node.compare()
        found[f"int8 and e4m3, {granularity}"] = node.run.out
    flash = own_attention(given, SDPBackend.FLASH_ATTENTION)()
    found["bf16 flash"] = flash.transpose(1, 2).flatten(2)
    found["fp4"] = fp4_output(library, node)
    exact = exact_rows(given.rows)
    for name, out in found.items():
        if out is not None:
            some = out[:, : FULL[1] : _EXACT_EACH].double()
            error = float((some - exact).norm() / exact.norm())
            record["error_against_exact_attention"][name] = error
    return record


def times(library: PluginLibrary) -> dict[str, Any]:
    """Medians at full size of this kernel and of torch's own, in turns in random order."""
    given = Inputs(FULL)
    nodes = {str(each): Node(library, FULL, each, given) for each in Granularity}
    first = next(iter(nodes.values()))
    calls: dict[str, Callable[[], object]] = {
        "flash": own_attention(given, SDPBackend.FLASH_ATTENTION),
        "cudnn": own_attention(given, SDPBackend.CUDNN_ATTENTION),
    }
    scaled = Inputs(FULL, row_scaled=True)
    for name, node in nodes.items():
        node.run.whole()
        calls[f"attention, {name}"] = node.run.attention
        calls[f"prologue, {name}"] = node.run.prologue
        calls[f"node, {name}"] = node.run.whole
        rows = Node(library, FULL, node.granularity, scaled).run
        calls[f"prologue, {name}, scaled rows"] = rows.prologue
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls.items())
    for round_ in range(_ROUNDS):
        # A card at its power limit slows down whatever comes behind the hungriest.
        random.Random(round_).shuffle(order)
        for name, call in order:
            taken[name].append(milliseconds(call, _REPEATS, warm_up=1))
    operations = first.run.region.operations()
    moved = sum(launch.bytes_moved for launch in first.run.region.launches[:-1])
    record: dict[str, Any] = {}
    for name, each in taken.items():
        median = statistics.median(each)
        record[name] = {"ms": median, "least_ms": min(each)}
        if name.startswith("prologue"):
            record[name]["gb_per_s"] = moved / median / 1e6
        elif not name.startswith("node"):
            record[name]["tflops"] = operations / median / 1e9
    slowest = min(record[f"attention, {name}"]["tflops"] for name in nodes)
    record["share_of_flash"] = slowest / record["flash"]["tflops"]
    return record


class Replayed:
    """A run as `contact_attention.replay` takes it."""

    def __init__(self, run: Sage2Run) -> None:
        self.run, self.out, self.workspace = run.whole, run.out, run.workspace


def check() -> dict[str, Any]:
    """Every shape with and without scales of rows; errors, replay and times at full size.

    Raises:
        AssertionError: an operand or the output is not that of the reference, or a replay differs.
    """
    library = library_of_this_gpu()
    shapes = []
    for shape in SHAPES:
        for row_scaled in (False, True):
            shapes += compared(library, Inputs(shape, row_scaled=row_scaled), shape)
            print(*shapes[-2:], sep="\n", flush=True)
    shapes += compared(library, Inputs(FULL, row_scaled=True), FULL)
    full = [errors(library, offset) for offset in (0.0, OFFSET)]
    print(shapes[-2:], *full, sep="\n", flush=True)
    every = shapes + [part[str(g)] for part in full for g in Granularity]
    replayed = replay(Replayed(Node(library, FULL, Granularity.THREAD, Inputs(FULL)).run))
    timed = times(library)
    print(replayed, timed, sep="\n", flush=True)
    wrong = [
        record
        for record in every
        if not record["relative_l2"] < LIMIT
        or record["operand_bytes_that_differ"]
        or not record["padding_is_zero"]
    ]
    if wrong:
        raise AssertionError(f"{len(wrong)} of {len(every)} comparisons fail: {wrong}")
    return {
        "limit_of_relative_l2": LIMIT,
        "compared": shapes,
        "full_size": {
            "shape": FULL,
            "inputs": full,
            "replay": replayed,
            "times": timed,
            "taken": f"median of {_ROUNDS} medians of {_REPEATS}, in turns in random order",
        },
        "library": {
            "build": library.build_info,
            "sha256": hashlib.sha256(Path(library.path).read_bytes()).hexdigest(),
        },
        "sources": sources(ROOT, SAGE2),
    }
