"""The bundle's attention: its prologue byte for byte, and the whole node against the reference."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.plugins.library_file import SOURCE
from fastwan.plugins.regions.attention import AttentionRegion, SageTensors
from fastwan.plugins.regions.base import dims
from fastwan.quality.selftest.attention_kinds import KINDS, Stored, differing_bytes
from fastwan.quality.selftest.context import Context, Outcome, Skip, StageFailure
from fastwan.quality.selftest.memory import GARBAGE, Scratch, to_numpy, to_torch
from fastwan.quality.selftest.report import Figure

Node = AttentionRegion[Any, Any]

_TOKENS = ((1, 1), (127, 127), (128, 128), (129, 256), (200, 207))
"""True tokens and rows: each side of a tile of 128, padded and not."""
_OWN_TOKENS = 4096
"""Most tokens of the bundle that are compared on a CPU; on a GPU that torch has, all."""
_HOST_TOKENS = ((1, 1), (129, 130))
_HOST_ALIGNMENT = 256  # of a workspace
_NO_REGION = "the bundle's attention is TensorRT's own: no kernel of the plugin library"


def node_inputs(region: Node, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs of an attention node, in its order; rows behind its tokens hold NaN."""
    generator = torch.Generator(device).manual_seed(seed)
    channels = region.channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    angle = normal(region.length, 64)
    qkv = normal(region.batch, region.length, 3 * channels).bfloat16()
    qkv[:, region.attributes.num_tokens :] = float("nan")
    tensors = SageTensors(
        qkv=qkv,
        qkv_scale=torch.tensor([0.5, 0.7, 1.1], device=device),
        qkv_bias=normal(3 * channels).bfloat16(),
        q_norm=(normal(channels) * 0.2 + 1).bfloat16(),
        k_norm=(normal(channels) * 0.2 + 1).bfloat16(),
        rope_cos=angle.cos(),
        rope_sin=angle.sin(),
    )
    further = region.inputs[len(tensors) :]
    scales = [torch.rand(dims(spec), generator=generator, device=device) + 0.5 for spec in further]
    for scale in scales:
        scale[:, region.attributes.num_tokens :] = float("nan")
    return (*tensors, *scales)


def prologue(context: Context) -> Outcome:
    """The operands of the attention, byte for byte."""
    library, compared = context.library, 0
    capability = context.machine.wanted_capability(context.bundle)
    regions = list(_regions(context, _TOKENS))
    for region in regions:
        inputs = node_inputs(region)
        with Scratch(context.device) as scratch:
            size = library.workspace_bytes(region)
            addresses = [scratch.put(to_numpy(each)) for each in inputs]
            out, workspace = scratch.space(_output_bytes(region)), scratch.space(size)
            library.enqueue_prologue(region, addresses, [out], workspace, size, scratch.stream)
            written = to_torch(scratch.get(workspace, (size,), "uint8"))
        wanted = KINDS[region.op].operands(region, inputs)
        stored = Stored(written, library.layout(region), wanted, library.emulated, capability)
        compared += _require_equal(stored, region)
    return Outcome(_same(compared, regions), (_differing(0),))


def prologue_on_host(context: Context) -> Outcome:
    """The same device code compiled for the processor here."""
    regions = list(_regions(context, _HOST_TOKENS))
    kind, compared = KINDS[regions[0].op], 0
    with tempfile.TemporaryDirectory(prefix="fastwan-selftest-") as folder:
        try:
            emulation = compile_for_host(Path(folder), kind.host_source)
        except EnvironmentLacks as error:
            raise Skip(error.what) from error
        for region in regions:
            inputs, layout, desc = node_inputs(region), region.new_layout(), region.desc()
            called = getattr(emulation, f"{kind.host_prefix}_layout")
            called(ctypes.byref(desc), ctypes.byref(layout))
            size = region.workspace_bytes
            buffer = torch.full((size + _HOST_ALIGNMENT,), GARBAGE, dtype=torch.uint8)
            workspace = buffer[-buffer.data_ptr() % _HOST_ALIGNMENT :][:size]
            out = torch.empty(_output_bytes(region), dtype=torch.uint8)
            called = getattr(emulation, f"{kind.host_prefix}_prologue")
            called(
                ctypes.byref(desc), _pointers(*inputs), _pointers(out),
                ctypes.c_void_p(workspace.data_ptr()),
            )  # fmt: skip
            wanted = kind.operands(region, inputs)
            stored = Stored(workspace, layout, wanted, False, kind.host_capability)
            compared += _require_equal(stored, region)
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
    """The node as the runtime launches it, against the reference, in each mode of its kernel."""
    figures = []
    for base in _regions(context, _TOKENS):
        kind, tokens = KINDS[base.op], base.attributes.num_tokens
        limit = kind.limits[context.machine.kind]
        for mode, node in kind.modes(base).items():
            figure = Figure(
                name=f"relative L2, {tokens} tokens, {mode}",
                value=_difference(context, node.on(context.platform.processors)),
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


def _difference(context: Context, region: Node) -> float:
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


def _regions(context: Context, tokens: tuple[tuple[int, int], ...]) -> Iterator[Node]:
    """Nodes with the bundle's heads at some lengths, and the bundle's own where that is quick.

    Raises:
        Skip: the bundle has none.
    """
    own = context.attention
    if own is None:
        raise Skip(_NO_REGION)
    for true, rows in tokens:
        yield KINDS[own.op].at(own, true, rows)
    if own.attributes.num_tokens <= _OWN_TOKENS or torch.cuda.is_available():
        yield own


def _output_bytes(region: Node) -> int:
    return 2 * region.batch * region.length * region.channels


def _require_equal(stored: Stored, region: Node) -> int:
    """Number of bytes compared.

    Raises:
        StageFailure: an operand differs.
    """
    found, wanted = KINDS[region.op].stored(stored), stored.like
    for name, one, other in zip(wanted._fields, found, wanted, strict=True):
        if wrong := differing_bytes(one, other):
            raise StageFailure(
                f"the prologue's {name} of {region.attributes.num_tokens} tokens: {wrong:,} of "
                f"{other.numel() * other.element_size():,} bytes differ from the reference",
                (_differing(wrong),),
            )
    return sum(each.numel() * each.element_size() for each in wanted)


def _same(compared: int, regions: list[Node]) -> str:
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
