"""Layer records: the kernels of an engine, read from the builder's own description of them.

An engine cannot be deserialised without a GPU, so the inspector is out of reach. With detailed
profiling verbosity the builder logs, for each engine, a block ``Layers:`` with one line a kernel:
name, type, tensors with dimensions and dtypes, tactic, and the ONNX nodes it came from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from fastwan.dtypes import LAYER_BITS, packed_bytes
from fastwan.errors import BadInput, VerificationFailed
from fastwan.export.recipes.nvfp4 import FP4

Kind = Literal["gemm", "attention", "convolution", "memory", "host"]

MAX_RANK = 16
MAX_ELEMENTS = 1 << 42
"""Largest tensor of a record: more than the memory of any GPU at a bit an element."""

SCALE_TILE = 128
"""Rows of one tile of swizzled FP4 block scales; a dynamic axis there counts tiles, not rows."""

_FIELDS = ("LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")
_REQUIRED = ("LayerType", "Inputs", "Outputs", "TacticName", "Metadata")
# A tensor's name may hold anything, braces included: what ends it is the field that follows.
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d, ]*)\]"
    r".*?Datatype: (?P<dtype>[^,}]+?)(?:, Format: .*)? \}"
)
_SHAPE = re.compile(r"(?:-?[0-9]{1,19}(?: *, *-?[0-9]{1,19})*)?")
_NEXT_TENSOR = re.compile(r"(?<= \}), (?=\{ Name: )")
# Nodes stand between unit separators; a node that the builder derived has a suffix after it.
_NODE = re.compile(r"\[ONNX Layer: (.*)\][^\]]*")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_PART = re.compile(r"_(myl\d+)_\d+$")
_FULLY_CONNECTED = re.compile(r"^__myl_[A-Za-z]*Fc")


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as a kernel reads or writes it; a dynamic axis is -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def elements(self, dynamic: int = 1) -> int:
        """Number of elements, with `dynamic` in the place of an axis that is not fixed."""
        sizes = list(self.shape)
        for axis, size in enumerate(sizes):
            if size < 0:
                tiled = sizes[axis + 1 : axis + 3] == [4, 32]
                sizes[axis] = -(-dynamic // SCALE_TILE) if tiled else dynamic
        return math.prod(sizes)

    def bytes(self, dynamic: int = 1) -> int:
        """Bytes, see `elements`.

        Raises:
            BadInput: the dtype is not known.
        """
        bits = LAYER_BITS.get(self.dtype)
        if bits is None:
            raise BadInput(f"unknown dtype {self.dtype!r} in a layer record", where=self.name)
        return packed_bytes(self.elements(dynamic), bits)


@dataclass(frozen=True)
class LayerRecord:
    """One kernel of an engine.

    Attributes:
        type: the builder's own word for it, e.g. ``gemm``, ``kgen``, ``correlation``.
        inputs: tensors it reads that another kernel or the caller writes.
        constants: weights it reads.
        tactic: name of the implementation; a stub where it is compiled on the GPU at load.
        nodes: names of the ONNX nodes behind it. A kernel that only rearranges the operand of a
            MatMul names that MatMul too.
        profile: optimization profile of the engine that runs it; each has kernels of its own.
    """

    name: str
    type: str
    inputs: tuple[TensorRecord, ...]
    constants: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    tactic: str
    nodes: tuple[str, ...]
    profile: int = 0

    @property
    def kind(self) -> Kind:
        """What bounds the kernel: arithmetic of some kind, or memory traffic."""
        if self.type == "shape_call" or not self.outputs:
            return "host"
        if "_mha" in self.name:
            return "attention"
        if self.type == "correlation" or self.name.startswith("__myl_Corr"):
            return "convolution"
        if self.type == "gemm" or _FULLY_CONNECTED.match(self.name):
            return "gemm"
        return "memory"

    @property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """Everything the kernel reads and writes."""
        return self.inputs + self.constants + self.outputs

    @property
    def operands(self) -> tuple[TensorRecord, ...]:
        """The two tensors that a GEMM, an attention or a convolution multiplies, where found.

        For a GEMM (activation [..., M, K], weight [..., K, N]): a residual, a bias, block scales,
        alpha and beta are read too and are none. For a convolution (input, filter).
        """
        reads = [tensor for tensor in self.inputs + self.constants if len(tensor.shape) > 1]
        if self.kind == "gemm":
            quantised = [tensor for tensor in reads if tensor.dtype == FP4]
            reads = quantised if len(quantised) > 1 else reads
            pairs = [
                (left, right)
                for left in reads
                for right in reads
                if left is not right and left.shape[-1] == right.shape[-2] > 0
            ]
            if pairs:  # a residual may have the activation's shape, not its dtype
                return min(pairs, key=lambda pair: pair[0].dtype != pair[1].dtype)
        if self.kind == "convolution":
            channels = max((t.shape[1] for t in self.outputs if len(t.shape) > 1), default=0)
            filters = [w for w in self.constants if len(w.shape) > 2 and w.shape[0] == channels]
            return (*self.inputs[:1], *filters[:1])
        return tuple(sorted(reads, key=lambda tensor: -tensor.elements(1 << 10))[:2])

    @property
    def precision(self) -> str:
        """dtype of what is multiplied; of a kernel that only moves memory, of its output."""
        if self.kind == "memory":
            return self.outputs[0].dtype
        if self.kind == "host":
            return ""
        operands = self.operands
        if not operands:
            return self.outputs[0].dtype
        # The widest one is what the multiplication runs in.
        return max(
            (tensor.dtype for tensor in operands), key=lambda dtype: LAYER_BITS.get(dtype, 0)
        )

    def to_json(self) -> dict[str, object]:
        """The record as it stands in ``layers.json``, with `kind` and `precision` for readers."""
        return asdict(self) | {"kind": self.kind, "precision": self.precision}


def parse_layers(
    messages: Iterable[str], engine: str, profiles: int = 1
) -> tuple[LayerRecord, ...]:
    """Records from the builder's log messages, those of all optimization profiles.

    Args:
        messages: verbose log of one build.
        engine: name of the engine, for the error.
        profiles: how many optimization profiles it was built with.

    Raises:
        VerificationFailed: there is no block ``Layers:``, it is empty, or a line of it is not
            understood, or a profile has no records. Without records nothing could be said of the
            engine, so it is refused.
    """
    for message in messages:
        if message.startswith("Layers:"):
            block = message.split("\n\n", 1)[0].splitlines()[1:]
            lines = [line for line in block if line.strip()]
            owners = _profiles(lines) if profiles > 1 else [0] * len(lines)
            records = tuple(
                _parse_line(_PROFILE.sub("", line) if profiles > 1 else line, engine, owner)
                for line, owner in zip(lines, owners, strict=True)
            )
            if {record.profile for record in records} == set(range(profiles)):
                return records
    raise VerificationFailed(
        "the builder's log has no layer records" + (" of every profile" if profiles > 1 else ""),
        where=engine,
        fix="report this version of TensorRT; its engines cannot be checked",
    )


def _profiles(lines: list[str]) -> list[int]:
    """Profile of each line.

    From the second profile on, the builder marks the names that come from the graph. A kernel
    between two tensors of the builder's own names none; it is known by the compiled part that it
    belongs to, whose number ends the kernel's name.
    """
    marks = [_PROFILE.search(line) for line in lines]
    parts = [_PART.search(line.split(", LayerType:", 1)[0]) for line in lines]
    known = {part[1]: mark[1] for part, mark in zip(parts, marks, strict=True) if part and mark}
    return [
        int(mark[1] if mark else known.get(part[1], 0) if part else 0)
        for mark, part in zip(marks, parts, strict=True)
    ]


def _parse_line(line: str, engine: str, profile: int) -> LayerRecord:
    values = _split(line, engine)
    nodes = map(_NODE.fullmatch, re.split("[\x1e\x1f]", values["Metadata"]))
    return LayerRecord(
        name=values["Name"],
        type=values["LayerType"],
        inputs=_tensors(values["Inputs"], engine, line),
        constants=_tensors(values.get("Constants", "[]"), engine, line),
        outputs=_tensors(values["Outputs"], engine, line),
        tactic=values["TacticName"],
        nodes=tuple(match[1] for match in nodes if match),
        profile=profile,
    )


def _split(line: str, engine: str) -> dict[str, str]:
    """Fields of a line by name; each ends where the next known one begins."""
    if not line.startswith("Name: "):
        raise _unreadable(engine, line)
    values: dict[str, str] = {}
    key, begin = "Name", len("Name: ")
    for name in _FIELDS:
        at = line.find(f", {name}:", begin)
        if at < 0:
            continue
        values[key] = line[begin:at].strip()
        key, begin = name, at + len(name) + 3
    values[key] = line[begin:].strip()
    if any(name not in values for name in _REQUIRED):
        raise _unreadable(engine, line)
    return values


def _tensors(text: str, engine: str, line: str) -> tuple[TensorRecord, ...]:
    # Fields of other versions may follow the list, so it ends at its last bracket.
    begin, end = text.find("["), text.rfind("]")
    if begin < 0 or end < begin:
        raise _unreadable(engine, line)
    body = text[begin + 1 : end].strip()
    records = []
    for part in _NEXT_TENSOR.split(body) if body else ():
        match = _TENSOR.fullmatch(part)
        if match is None or _SHAPE.fullmatch(sizes := match["shape"].strip()) is None:
            raise _unreadable(engine, line)
        shape = tuple(map(int, sizes.split(","))) if sizes else ()
        if not _sizes_fit(shape):
            raise _unreadable(engine, line)
        records.append(TensorRecord(match["name"], match["dtype"].strip(), shape))
    return tuple(records)


def _sizes_fit(shape: Sequence[int]) -> bool:
    """Whether axes are -1 (dynamic) or sizes, and few and small enough for a tensor of a GPU."""
    return (
        len(shape) <= MAX_RANK
        and all(-1 <= size < 1 << 31 for size in shape)
        and math.prod(size for size in shape if size > 0) <= MAX_ELEMENTS
    )


def _unreadable(engine: str, line: str) -> VerificationFailed:
    return VerificationFailed(
        f"a layer record of the builder cannot be read: {line[:120]!r}",
        where=engine,
        fix="report this version of TensorRT; its engines cannot be checked",
    )
