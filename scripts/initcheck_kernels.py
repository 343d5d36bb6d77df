"""Each kernel once, for compute-sanitizer's initcheck: see sanitize_kernels.sh.

Inputs are made on the CPU, and rows that no kernel may read (they hold NaN) are not copied to the
GPU; workspace and outputs are memory as it is allocated. No kernel but the project's runs, so that
whatever the tool finds is theirs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from itertools import product

import contact_attention
import contact_glue
import contact_sage2
import torch
from torch import Tensor

from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.base import RegionOp, dims
from fastwan.plugins.regions.sage_attention2 import Sage2Attributes, SageAttention2
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.quality.selftest.glue import glue_inputs
from fastwan.quality.selftest.regions import node_inputs

SHAPES = ((1, 1, 12, 1), (2, 127, 2, 127), (1, 128, 2, 128), (2, 129, 3, 256), (1, 200, 2, 207))
"""Batch, tokens, heads, rows."""
_BEGIN = time.monotonic()
DIVIDED, PROCESSORS = (1, 1930, 1, 2048), 15


def on_gpu(tensor: Tensor) -> Tensor:
    """A copy without the rows that hold nothing but NaN."""
    copy = torch.empty_like(tensor, device="cuda")
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    at = 0
    for read, run in _runs((~rows.isnan().all(-1)).tolist()):
        if read:
            copy.view(rows.shape)[at : at + run].copy_(rows[at : at + run])
        at += run
    return copy


def _runs(flags: Sequence[bool]) -> Iterator[tuple[bool, int]]:
    """Each value with how often it comes one after another."""
    first = 0
    for end in range(1, len(flags) + 1):
        if end == len(flags) or flags[end] != flags[first]:
            yield flags[first], end - first
            first = end


def run(library: PluginLibrary, region: RegionOp, inputs: Sequence[Tensor]) -> int:
    """Enqueue a region over fresh memory."""
    given = [on_gpu(x) for x in inputs]
    outputs = [
        torch.empty(dims(spec), dtype=getattr(torch, spec.dtype), device="cuda")
        for spec in region.outputs
    ]
    size = library.workspace_bytes(region)
    workspace = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
    addresses = ([x.data_ptr() for x in tensors] for tensors in (given, outputs))
    stream = torch.cuda.current_stream().cuda_stream
    library.enqueue(region, *addresses, workspace.data_ptr(), size, stream)
    torch.cuda.synchronize()
    print(f"{region}, {time.monotonic() - _BEGIN:.0f} s", flush=True)
    return 1


def attentions(library: PluginLibrary) -> int:
    """The FP4 attention by each of its kernels, and with its keys divided."""
    done = 0
    for batch, tokens, heads, rows in (*SHAPES, DIVIDED):
        for exact_max in (False, True):
            attributes = SageAttributes(heads, tokens, exact_max=exact_max)
            region = SageAttention3(batch, rows, attributes)
            divided = dataclasses.replace(region, processors=PROCESSORS)
            for each in (*region.alternatives.values(), divided):
                done += run(library, each, node_inputs(region))
    return done


def sage2_attentions(library: PluginLibrary) -> int:
    """SageAttention2++ with the scales of a thread and of a warp, and with scales of rows."""
    done = 0
    for batch, tokens, heads, rows in SHAPES:
        for per_warp, row_scaled in product((False, True), repeat=2):
            attributes = Sage2Attributes(heads, tokens, per_warp, row_scaled=row_scaled)
            region = SageAttention2(batch, rows, attributes)
            done += run(library, region, node_inputs(region))
    return done


def main() -> None:
    done = attentions(contact_attention.library_of_this_gpu())
    glue = contact_glue.library_of_this_gpu()
    done += sum(run(glue, op, glue_inputs(op)) for op in contact_glue.BOUNDARIES)
    done += sage2_attentions(contact_sage2.library_of_this_gpu())
    print(f"{done} passed")


if __name__ == "__main__":
    main()
