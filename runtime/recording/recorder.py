"""Recording: components run over it, and what they would enqueue becomes a list of operations.

The recorder adds what a person forgets: a cast where a graph wants another dtype, and an event
wherever one stream uses what another one has written or still reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec
from fastwan.runtime.recording.operations import (
    Barrier,
    Cast,
    Combine,
    Copy,
    Mark,
    Operation,
    Signal,
    Zero,
)
from fastwan.runtime.recording.tensors import Buffer, Tensor, allocate, packed_pairs

COMPUTE, COPY = 0, 1
"""Streams."""

SCRATCH = Buffer("scratch", 0)
"""Stands for the one scratch buffer of all engines and regions, as large as the largest request."""


@dataclass
class Stage:
    """Consecutive operations that may become one graph.

    Everything of a stage is done, on every stream, before anything of the next one begins.
    """

    name: str
    operations: list[Operation] = field(default_factory=list)

    @property
    def marks(self) -> list[str]:
        """Names of its marks, in order."""
        return [each.name for each in self.operations if isinstance(each, Mark)]


@dataclass(frozen=True)
class _Access:
    number: int
    stream: int
    write: bool
    span: tuple[int, int]


class Recorder:
    """Collects operations by stage; streams are ordered as they are added."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.calls: list[str] = []
        self.events = 0
        self._number = 0
        self._operations: dict[int, Operation] = {}
        self._last: dict[int, int] = {}
        self._clocks: dict[int, dict[int, int]] = {}
        self._after: dict[int, dict[int, int]] = {}
        self._accesses: dict[Buffer, list[_Access]] = {}

    def begin(self, name: str) -> None:
        """What is recorded from here on belongs to stage `name`."""
        self.stages.append(Stage(name))
        self._last, self._after, self._accesses = {}, {}, {}

    def end(self) -> None:
        """Mark the end of the stage, join the streams and mark the end of what ran beside it."""
        self.add(Mark(name=self.stages[-1].name))
        beside = [number for stream, number in self._last.items() if stream != COMPUTE]
        for number in beside:
            self._join(number)
        if beside:
            self.add(Mark(name="copy"))

    def call(self, name: str) -> None:
        """Note the call of a component, to compare schedules by."""
        self.calls.append(name)

    def add(self, operation: Operation) -> None:
        """Append to the stage, after the events that its reads and writes need."""
        stream = operation.stream
        after = self._after.setdefault(stream, {})
        needed: dict[int, int] = {}
        for write, tensors in ((False, operation.reads), (True, operation.writes)):
            for tensor in tensors:
                for access in self._accesses.get(tensor.buffer, ()):
                    conflict = write or access.write
                    if access.stream == stream or not conflict or not _overlap(access, tensor):
                        continue
                    if after.get(access.stream, -1) < access.number:
                        needed[access.stream] = max(needed.get(access.stream, -1), access.number)
        if stream != COMPUTE and stream not in self._last and not needed:
            # A stream takes part in a capture once it has waited for the one that began it.
            if COMPUTE not in self._last:
                self.add(Barrier())
            needed[COMPUTE] = self._last[COMPUTE]
        for other, number in needed.items():
            operation.waits.append(self._signal(number))
            for known, clock in self._clocks[number].items():
                after[known] = max(after.get(known, -1), clock)
            after[other] = max(after.get(other, -1), number)
        number, self._number = self._number, self._number + 1
        self._operations[number] = operation
        self._last[stream] = number
        self._clocks[number] = {**after, stream: number}
        self.stages[-1].operations.append(operation)
        self._note(operation, number)

    def _note(self, operation: Operation, number: int) -> None:
        for write, tensors in ((False, operation.reads), (True, operation.writes)):
            for tensor in tensors:
                self._accesses.setdefault(tensor.buffer, []).append(
                    _Access(number, operation.stream, write, tensor.span)
                )

    def _only_compute(self, terms: Sequence[tuple[float, Tensor]]) -> bool:
        accesses = (a for _, tensor in terms for a in self._accesses.get(tensor.buffer, ()))
        return all(access.stream == COMPUTE for access in accesses)

    def _signal(self, number: int) -> int:
        operation = self._operations[number]
        if operation.signal is None:
            operation.signal, self.events = self.events, self.events + 1
        return operation.signal

    def _join(self, number: int) -> None:
        after = self._after.setdefault(COMPUTE, {})
        stream = self._operations[number].stream
        if after.get(stream, -1) < number:
            after[stream] = number
            self.add(Barrier(waits=[self._signal(number)]))

    def cast(self, tensor: Tensor, spec: TensorSpec, shape: tuple[int, ...]) -> Tensor:
        """`tensor` as an engine takes it: as it is, or cast into a buffer of its own.

        Bytes of two 4-bit codes each, as the project's kernels write them, are such codes as they
        lie.

        Raises:
            BadInput: another shape, or a dtype that cannot become the wanted one.
        """
        pairs = packed_pairs(tensor, spec.dtype)
        if pairs is not None and pairs.shape == shape:
            return pairs
        if tensor.shape != shape:
            raise BadInput(
                f"{spec.name} has shape {list(tensor.shape)}, the engine wants {list(shape)}",
                where="bundle",
                fix="build the bundle again",
            )
        if tensor.dtype == spec.dtype and tensor.contiguous:
            return tensor
        floats = {"float16", "bfloat16", "float32"}
        if {tensor.dtype, spec.dtype} - floats or tensor.packed is not None:
            raise BadInput(f"{spec.name} is {tensor.dtype}, not {spec.dtype}", where="bundle")
        fitted = allocate(spec, shape)
        self.add(Cast(source=tensor, target=fitted))
        return fitted

    def combine(self, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
        """Weighted sum, fp32; sums that follow each other share a kernel where one can hold them.

        This is the `combine` of `fastwan.runtime.model.loop.denoise`.
        """
        self.call("combine " + " ".join(f"{weight:.9g}" for weight, _ in terms))
        shape = terms[0][1].shape
        output = allocate(TensorSpec(name="latents", dtype="float32", shape=shape))
        last = self.stages[-1].operations[-1] if self.stages[-1].operations else None
        if isinstance(last, Combine) and self._only_compute(terms) and last.extend(terms, output):
            self._note(last, self._last[COMPUTE])
            return output
        operation = Combine(terms=[], sums=[], outputs=[])
        if not operation.extend(terms, output):
            raise BadInput(f"a step has {len(terms)} terms", where="sampler")
        self.add(operation)
        return output

    def copy(self, source: Tensor, target: Tensor, *, stream: int = COMPUTE) -> None:
        """Copy bytes; both contiguous and alike."""
        if (source.shape, source.dtype) != (target.shape, target.dtype):
            raise BadInput(f"{source.buffer.name} is not like {target.buffer.name}", where="copy")
        self.add(Copy(source=source, target=target, stream=stream))

    def signal(self, word: Tensor, *, stream: int = COMPUTE) -> None:
        """Tell the host, by a word of pinned memory, that the stream got here."""
        self.add(Signal(word=word, stream=stream))

    def zero(self, target: Tensor) -> None:
        self.add(Zero(target=target))


def _overlap(access: _Access, tensor: Tensor) -> bool:
    begin, end = tensor.span
    return access.span[0] < end and begin < access.span[1]


def scratch(size: int) -> Tensor:
    """The first `size` bytes of the shared scratch buffer."""
    return Tensor(SCRATCH, "uint8", (size,), (1,))
