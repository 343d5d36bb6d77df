"""The attention node on the GPU at hand against its reference: an item of first_contact.py."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from cuda_timing import capture, milliseconds
from figure_sources import sources

from fastwan.errors import EnvironmentLacks
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention3 import (
    IMPLEMENTATIONS,
    SageAttention3,
    SageAttributes,
)
from fastwan.quality.selftest.attention_kinds import SAGE3
from fastwan.quality.selftest.regions import node_inputs

FULL = (1, 32760, 12, 32768)
SHAPES = (
    (1, 1, 12, 1), (2, 127, 12, 127), (1, 128, 12, 128), (2, 129, 3, 256), (1, 200, 12, 207),
    (1, 1560, 12, 1664), (1, 4095, 12, 4096), FULL,
)  # fmt: skip
"""Batch, tokens, heads, rows: each side of a tile of 128, padded and unpadded, and 832x480x81."""

BOUNDARIES = range(1, 130)
"""Numbers of tokens that are all compared: each place in a tile of keys, and one key behind it."""
BOUNDARY_HEADS, BOUNDARY_ROWS = 12, 136
REPEATS = 20
PROCESSORS = (170, 188, 132, 48)
"""Multiprocessors that the keys are divided for, whatever the GPU has."""


def library_of_this_gpu() -> PluginLibrary:
    """The library that serves this GPU, FP4 before emulated.

    Raises:
        EnvironmentLacks: none does, or it is not built.
    """
    reasons = []
    for emulated in (False, True):
        try:
            library = PluginLibrary(emulated=emulated)
            library.check_device(torch.cuda.current_device())
            return library
        except EnvironmentLacks as error:
            reasons.append(error.what)
    raise EnvironmentLacks("; ".join(reasons), fix="fastwan-export build-plugin [--emulated]")


class Node:
    """One region with random inputs on the GPU; rows behind its tokens hold NaN."""

    def __init__(self, library: PluginLibrary, region: SageAttention3) -> None:
        self.library, self.region = library, region
        self.inputs = node_inputs(region, "cuda")
        shape = (region.batch, region.length, region.channels)
        self.out = torch.full(shape, 7.0, dtype=torch.bfloat16, device="cuda")
        size = library.workspace_bytes(region)
        self.workspace = torch.full((size,), 0xA5, dtype=torch.uint8, device="cuda")

    def by(self, implementation: str) -> Node:
        """The same node, from here on by that kernel."""
        self.region = self.region.alternatives[implementation]
        return self

    def run(self) -> torch.Tensor:
        stream = torch.cuda.current_stream().cuda_stream
        addresses, size = [x.data_ptr() for x in self.inputs], self.workspace.numel()
        self.library.enqueue(
            self.region, addresses, [self.out.data_ptr()], self.workspace.data_ptr(), size, stream
        )
        return self.out

    def run_attention(self, processors: int | None = None) -> torch.Tensor:
        stream = torch.cuda.current_stream().cuda_stream
        at, size = self.workspace.data_ptr(), self.workspace.numel()
        region = self.region if processors is None else self.region.on(processors)
        self.library.enqueue_attention(region, [self.out.data_ptr()], at, size, stream)
        return self.out

    def expected(self) -> torch.Tensor:
        return self.region.reference(*self.inputs)[0]


def compare(node: Node) -> dict[str, Any]:
    """The output against the reference on the same GPU."""
    node.out.fill_(7.0)
    found, expected = node.run(), node.expected()
    tokens = node.region.attributes.num_tokens
    difference = found.float() - expected.float()
    return {
        "implementation": node.region.implementation,
        "batch": node.region.batch,
        "tokens": tokens,
        "heads": node.region.attributes.num_heads,
        "rows": node.region.length,
        "exact_max": node.region.attributes.exact_max,
        "relative_l2": float(difference.norm() / expected.float().norm()),
        "largest_difference": float(difference.abs().max()),
        "share_of_equal_elements": float((found == expected)[:, :tokens].float().mean()),
        "padding_is_zero": bool((found[:, tokens:] == 0).all()),
    }


def require(records: list[dict[str, Any]], limit: float) -> None:
    """Hold every comparison to one limit of its relative L2; all of them are printed before.

    Raises:
        AssertionError: one is further away than that, or its padding is not zero.
    """
    wrong = [
        record
        for record in records
        if not (record["relative_l2"] < limit and record["padding_is_zero"])
    ]
    if wrong:
        raise AssertionError(f"{len(wrong)} of {len(records)} comparisons fail: {wrong}")


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The furthest of `BOUNDARIES`, of one implementation in one mode."""
    shares = [record["share_of_equal_elements"] for record in records]
    return {
        "implementation": records[0]["implementation"],
        "tokens": f"{BOUNDARIES[0]} .. {BOUNDARIES[-1]}, all",
        "heads": BOUNDARY_HEADS,
        "rows": BOUNDARY_ROWS,
        "exact_max": records[0]["exact_max"],
        "compared": len(records),
        "largest_relative_l2": max(record["relative_l2"] for record in records),
        "smallest_share_of_equal_elements": min(shares),
        "padding_is_zero": all(record["padding_is_zero"] for record in records),
    }


def replay(node: Node) -> dict[str, Any]:
    """The node as a CUDA graph against the node enqueued, and device memory before and after.

    Raises:
        AssertionError: they differ, or a call took memory.
    """
    direct = node.run().clone()
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    node.run()
    torch.cuda.synchronize()
    taken = free - torch.cuda.mem_get_info()[0]
    graph, _ = capture(node.run)
    equal = True
    for _ in range(3):
        node.out.fill_(7.0)
        node.workspace.fill_(0xA5)
        graph.replay()
        equal = equal and torch.equal(node.out, direct)
    if taken or not equal:
        raise AssertionError(f"a call took {taken} bytes; replays identical: {equal}")
    return {"bytes_taken_by_a_call": taken, "replays_identical_to_enqueued": equal}


def last_wave(library: PluginLibrary) -> list[dict[str, Any]]:
    """Keys divided for some numbers of multiprocessors at full size, beside the undivided.

    A number other than the GPU's own tells of the result, not of the time. As many multiprocessors
    as tiles leave the schedule as it was published, on the grid of this GPU.

    Raises:
        AssertionError: a run gives other bits than the run before it or its replay.
    """
    batch, tokens, heads, rows = FULL
    region = SageAttention3(batch, rows, SageAttributes(heads, tokens))
    node = Node(library, region)
    node.run()
    own = torch.cuda.get_device_properties(0).multi_processor_count
    published = node.run_attention(region.tiles).clone()
    published_ms = milliseconds(lambda: node.run_attention(region.tiles), REPEATS)
    records = []
    for processors in sorted({own, *PROCESSORS}):
        node.region = region.on(processors)
        split = region.key_split(processors)
        record = {
            "processors": processors,
            "of_this_gpu": processors == own,
            "whole_tiles": split.whole,
            "parts": split.parts,
            "waves": region.waves(processors),
            "waves_published": region.waves(processors, divided=False),
            **compare(node),
        }
        first = node.out.clone()
        graph, _ = capture(node.run_attention)
        node.out.fill_(7.0)
        graph.replay()
        replayed = torch.equal(node.out[:, :tokens], first[:, :tokens])
        node.run_attention()
        if not (replayed and torch.equal(node.out[:, :tokens], first[:, :tokens])):
            raise AssertionError(f"{processors} multiprocessors: a second run has other bits")
        difference = (first.float() - published.float())[:, :tokens]
        record["relative_l2_from_undivided"] = float(difference.norm() / published.float().norm())
        by_tile = difference.unflatten(-1, (heads, -1)).abs().amax(-1).amax(0)
        tiles = torch.nn.functional.pad(by_tile.T, (0, -tokens % 128)).unflatten(1, (-1, 128))
        changed = tiles.amax(-1).flatten().nonzero()[:, 0]
        record["first_tile_with_other_bits"] = int(changed[0]) if len(changed) else None
        if len(changed) and int(changed[0]) < split.whole:
            raise AssertionError(
                f"{processors} multiprocessors: tile {int(changed[0])} has changed"
            )
        ms = milliseconds(node.run_attention, REPEATS)
        again = milliseconds(lambda: node.run_attention(region.tiles), REPEATS)
        record |= {"attention_ms": ms, "published_ms": min(published_ms, again)}
        record["time_beside_published"] = ms / min(published_ms, again)
        print(record, flush=True)
        records.append(record)
    return records


def measure(node: Node) -> dict[str, Any]:
    """Capture and replay, and times."""
    attention_ms = milliseconds(node.run_attention, REPEATS)
    return {
        **replay(node),
        "attention_ms": attention_ms,
        "attention_tops": node.region.operations() / attention_ms / 1e9,
        "node_ms": milliseconds(node.run, REPEATS),
    }


def check() -> dict[str, Any]:
    """Every shape in both modes by every implementation, then capture, replay and times.

    Raises:
        AssertionError: the output is not that of the reference.
    """
    library = library_of_this_gpu()
    compared, boundaries, shapes = [], [], []
    modes: dict[str, dict[str, Any]] = {}
    swept = [(1, tokens, BOUNDARY_HEADS, BOUNDARY_ROWS) for tokens in BOUNDARIES]
    for exact_max in (False, True):
        records: dict[str, list[dict[str, Any]]] = {each: [] for each in IMPLEMENTATIONS}
        for batch, tokens, heads, rows in (*swept, *SHAPES):
            attributes = SageAttributes(heads, tokens, exact_max=exact_max)
            node = Node(library, SageAttention3(batch, rows, attributes))
            for name in records:
                records[name].append(compare(node.by(name)))
        times = {name: measure(node.by(name)) for name in records}
        modes["exact" if exact_max else "published"] = times
        for found in records.values():
            boundaries.append(summary(found[: len(swept)]))
            shapes += found[len(swept) :]
            compared += found
            print(boundaries[-1], *found[len(swept) :], sep="\n", flush=True)
        print(times, flush=True)
    waves = last_wave(library)
    limit = SAGE3.limits["emulated" if library.emulated else "cuda"]
    require([*compared, *waves], limit)
    return {
        "fp4_arithmetic": "emulated" if library.emulated else "of the GPU",
        "limit_of_relative_l2": limit,
        "boundaries": boundaries,
        "shapes": shapes,
        "last_wave": waves,
        "full_size": {
            "shape": FULL,
            "times": f"median of {REPEATS}, measured"
            + (" (emulation): they say nothing of FP4" if library.emulated else ""),
            "maxima": modes,
        },
        "library": {
            "build": library.build_info,
            "sha256": hashlib.sha256(Path(library.path).read_bytes()).hexdigest(),
        },
        "sources": sources(),
    }
