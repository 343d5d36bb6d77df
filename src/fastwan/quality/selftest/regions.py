"""The FP4 attention: its prologue bit for bit, and the whole node against the reference."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.plugins import packing, prologue_reference
from fastwan.plugins.build import SOURCE
from fastwan.plugins.regions.attention import SageTensors
from fastwan.plugins.regions.sage_attention2 import SageAttention2
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes, SageLayout
from fastwan.quality.selftest.context import Context, Outcome, Skip, StageFailure
from fastwan.quality.selftest.memory import GARBAGE, Scratch, to_numpy, to_torch
from fastwan.quality.selftest.report import Figure

LIMITS = {"emulated": SageAttention3.limit, "cuda": 2e-2}
"""Largest relative L2 difference of the attention from the reference, by kind of machine.

Emulated, only the order of sums and ``ex2.approx`` differ; a GPU's own FP4 MMA has not been seen.
"""

_TOKENS = ((1, 1), (127, 127), (128, 128), (129, 256), (200, 207))
"""True tokens and rows: each side of a tile of 128, padded and not."""
_OWN_TOKENS = 4096
"""Most tokens of the bundle that are compared on a CPU; on a GPU that torch has, all."""
_HOST_TOKENS = ((1, 1), (129, 130))
_NO_REGION = "the bundle's attention is TensorRT's own: no kernel of the plugin library"


def node_inputs(
    region: SageAttention3 | SageAttention2, device: str = "cpu", seed: int = 0
) -> SageTensors[Tensor]:
    """Random inputs of an attention node; rows behind its tokens hold NaN."""
    generator = torch.Generator(device).manual_seed(seed)
    channels = region.channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    angle = normal(region.length, 64)
    qkv = normal(region.batch, region.length, 3 * channels).bfloat16()
    qkv[:, region.attributes.num_tokens :] = float("nan")
    return SageTensors(
        qkv=qkv,
        qkv_scale=torch.tensor([0.5, 0.7, 1.1], device=device),
        qkv_bias=normal(3 * channels).bfloat16(),
        q_norm=(normal(channels) * 0.2 + 1).bfloat16(),
        k_norm=(normal(channels) * 0.2 + 1).bfloat16(),
        rope_cos=angle.cos(),
        rope_sin=angle.sin(),
    )


def expected_operands(region: SageAttention3, inputs: SageTensors[Tensor]) -> packing.Operands:
    """What the prologue has to write, on the CPU."""
    attributes = region.attributes
    rows = prologue_reference.prologue(
        *inputs,
        num_heads=attributes.num_heads,
        num_tokens=attributes.num_tokens,
        eps=attributes.eps,
    )
    return packing.pack_operands(*(x[:, : attributes.num_tokens] for x in rows))


def stored_operands(
    workspace: Tensor, layout: SageLayout, shapes: packing.Operands, emulated: bool
) -> packing.Operands:
    """Packed operands in a workspace.

    Args:
        workspace: uint8, on any device.
        shapes: operands of the shapes to expect.
        emulated: whether an emulated library laid them out: rows of k and pieces of v of 64 bytes
            then lie 128 bytes apart.
    """
    parts = []
    for name, like in zip(packing.Operands._fields, shapes, strict=True):
        apart = 128 if emulated and name in ("k", "v") else 64
        flat = workspace.as_strided((like.numel() // 64, 64), (apart, 1), getattr(layout, name))
        parts.append(flat.reshape(like.shape).cpu())
    return packing.Operands(*parts)


def prologue(context: Context) -> Outcome:
    """The packed operands of the attention, byte for byte."""
    library, compared = context.library, 0
    regions = list(_regions(context, _TOKENS))
    for region in regions:
        inputs = node_inputs(region)
        with Scratch(context.device) as scratch:
            size = library.workspace_bytes(region)
            addresses = [scratch.put(to_numpy(each)) for each in inputs]
            out, workspace = scratch.space(_output_bytes(region)), scratch.space(size)
            library.enqueue_prologue(region, addresses, [out], workspace, size, scratch.stream)
            written = to_torch(scratch.get(workspace, (size,), "uint8"))
        wanted = expected_operands(region, inputs)
        stored = stored_operands(written, library.layout(region), wanted, library.emulated)
        compared += _require_equal(stored, wanted, region)
    return Outcome(_same(compared, regions), (_differing(0),))


def prologue_on_host(context: Context) -> Outcome:
    """The same device code compiled for the processor here."""
    regions = list(_regions(context, _HOST_TOKENS))
    compared = 0
    with tempfile.TemporaryDirectory(prefix="fastwan-selftest-") as folder:
        try:
            emulation = compile_for_host(Path(folder), "emulate_prologue.cpp")
        except EnvironmentLacks as error:
            raise Skip(error.what) from error
        for region in regions:
            inputs, layout, desc = node_inputs(region), SageLayout(), region.desc()
            emulation.fastwan_emulate_layout(ctypes.byref(desc), ctypes.byref(layout))
            workspace = torch.full((layout.total,), GARBAGE, dtype=torch.uint8)
            out = torch.empty(_output_bytes(region), dtype=torch.uint8)
            emulation.fastwan_emulate_prologue(
                ctypes.byref(desc), _pointers(*inputs), _pointers(out),
                ctypes.c_void_p(workspace.data_ptr()),
            )  # fmt: skip
            wanted = expected_operands(region, inputs)
            stored = stored_operands(workspace, layout, wanted, emulated=False)
            compared += _require_equal(stored, wanted, region)
    note = f"{_same(compared, regions)}; device code compiled for this processor"
    return Outcome(note, (_differing(0, "emulated"),))


def compile_for_host(folder: Path, source: str, *definitions: str) -> ctypes.CDLL:
    """Device code ``csrc/<source>`` compiled for the processor here, and loaded.

    Raises:
        EnvironmentLacks: no compiler, or no sources.
    """
    compiler, path = shutil.which("g++"), SOURCE / "csrc" / source
    if compiler is None or not path.is_file():
        missing = "g++ is not installed" if compiler is None else "the sources are not installed"
        raise EnvironmentLacks(missing, where=source, fix="install g++ and run from a checkout")
    target = folder / "libemulation.so"
    # A contracted multiply-add would round once where the device rounds twice; a fortified longjmp
    # refuses to change stacks.
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra"]
    flags += ["-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared"]
    command = [compiler, *flags, *definitions, str(path), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[:300]
        raise EnvironmentLacks(f"g++ does not compile {source}: {said}", where=source)
    return ctypes.CDLL(str(target))


def attention(context: Context) -> Outcome:
    """The node as the runtime launches it, against the reference, in both modes of the maxima."""
    limit = LIMITS[context.machine.kind]
    figures = []
    for base in _regions(context, _TOKENS):
        for exact_max in (False, True):
            tokens, heads = base.attributes.num_tokens, base.attributes.num_heads
            attributes = SageAttributes(heads, tokens, exact_max=exact_max)
            region = replace(base, attributes=attributes, processors=context.platform.processors)
            mode = "exact maxima" if exact_max else "published maxima"
            figure = Figure(
                name=f"relative L2, {tokens} tokens, {mode}",
                value=_difference(context, region),
                limit=limit,
                label="emulated" if context.machine.kind == "emulated" else "measured",
            )
            figures.append(figure)
            if not figure.value <= limit:
                raise StageFailure(
                    f"the attention of {tokens} tokens ({mode}) differs from the reference by "
                    f"{figure.value:.3g}, more than {limit:g}",
                    tuple(figures),
                )
    largest = max(figure.value for figure in figures)
    return Outcome(f"{len(figures)} comparisons, largest difference {largest:.3g}", tuple(figures))


def attention_on_host(context: Context) -> Outcome:
    """Nothing: the kernel needs a GPU."""
    raise Skip("the attention's kernel needs a GPU")


def _difference(context: Context, region: SageAttention3) -> float:
    """Relative L2 difference of the output from the reference; infinite where padding is not 0."""
    on = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = node_inputs(region, on, seed=1)
    size = region.workspace_bytes
    shape = (region.batch, region.length, region.channels)
    with Scratch(context.device) as scratch:
        addresses = [scratch.put(to_numpy(each.cpu())) for each in inputs]
        out, workspace = scratch.space(_output_bytes(region)), scratch.space(size)
        context.platform.kernels.region(region, addresses, [out], workspace, size, scratch.stream)
        found = to_torch(scratch.get(out, shape, "bfloat16")).float()
    expected = region.reference(*inputs)[0].float().cpu()
    if bool((found[:, region.attributes.num_tokens :] != 0).any()):
        return float("inf")
    difference = float((found - expected).norm() / expected.norm())
    return difference if difference == difference else float("inf")


def _regions(context: Context, tokens: tuple[tuple[int, int], ...]) -> Iterator[SageAttention3]:
    """Nodes with the bundle's heads at some lengths, and the bundle's own where that is quick.

    Raises:
        Skip: the bundle has none.
    """
    own = context.attention
    if own is None:
        raise Skip(_NO_REGION)
    for true, rows in tokens:
        yield SageAttention3(1, rows, SageAttributes(own.attributes.num_heads, true))
    if own.attributes.num_tokens <= _OWN_TOKENS or torch.cuda.is_available():
        yield own


def _output_bytes(region: SageAttention3) -> int:
    return 2 * region.batch * region.length * region.channels


def _require_equal(
    stored: packing.Operands, wanted: packing.Operands, region: SageAttention3
) -> int:
    """Number of bytes compared.

    Raises:
        StageFailure: an operand differs.
    """
    for name, found, expected in zip(packing.Operands._fields, stored, wanted, strict=True):
        if wrong := int((found != expected).sum()):
            raise StageFailure(
                f"the prologue's {name} of {region.attributes.num_tokens} tokens: {wrong:,} of "
                f"{expected.numel():,} bytes differ from the reference",
                (_differing(wrong),),
            )
    return sum(each.numel() for each in wanted)


def _same(compared: int, regions: list[SageAttention3]) -> str:
    lengths = ", ".join(str(region.attributes.num_tokens) for region in regions)
    return f"{compared:,} bytes of {lengths} tokens are those of the reference"


def _differing(wrong: int, label: str = "measured") -> Figure:
    return Figure.model_validate(
        {"name": "bytes that differ", "value": float(wrong), "limit": 0.0, "label": label}
    )


def _pointers(*tensors: Tensor) -> ctypes.Array[ctypes.c_void_p]:
    if not all(each.is_contiguous() for each in tensors):
        raise BadInput("a tensor of a node has gaps", where="selftest")
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))
