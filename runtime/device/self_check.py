"""Our kernels beside the builder's, on one block of a bundle, when it is first loaded on a GPU.

A step is played on a made-up prompt and noise, so that every region reads what the model makes.
Each distinct region is computed by its kernel and by its fallback from the same inputs, and the
step goes on with the fallback's results: a kernel at fault does not disturb the next one. Then the
block is played by the kernels that agreed, from its start, and its result is compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastwan.bundle import Bundle
from fastwan.dtypes import PAIRED
from fastwan.errors import EnvironmentLacks, FastWanWarning
from fastwan.plugins.regions import RegionOp
from fastwan.runtime.device.difference import Difference, difference, significant
from fastwan.runtime.device.memory import DeviceMemory
from fastwan.runtime.device.player import Player
from fastwan.runtime.model.executor import Array
from fastwan.runtime.recording.fallbacks import fallback_names, in_place_of
from fastwan.runtime.recording.machine import Device, DeviceEngine, DeviceError, Kernels
from fastwan.runtime.recording.memory_plan import plan
from fastwan.runtime.recording.operations import LaunchRegion, Operation, RunEngine
from fastwan.runtime.recording.record import Recording
from fastwan.runtime.recording.recorder import COMPUTE, Stage
from fastwan.runtime.recording.tensors import Tensor
from fastwan.schema import Record

NAME = "self-check"
"""Of the outcome."""
BLOCK = 0.2
"""Largest relative L2 of a block's result. Two roundings of an activation to FP4 that have nothing
in common are about 0.15 apart; a fault of layout makes 1 and more."""
_TOKENS = 1 / 8
"""Share of a prompt's rows that hold tokens."""
_EMBEDDING = 0.2
"""Standard deviation of a made-up prompt's embeddings."""


class RegionCheck(Record):
    """A kernel of ours beside the operators that it stands for."""

    kind: str
    """Of region."""
    region: str
    """With its shape."""
    outputs: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        return all(each.rounding for each in self.outputs)

    def __str__(self) -> str:
        return f"{self.kind}: " + ", ".join(str(e) for e in self.outputs if not e.rounding)


class SelfCheck(Record):
    """What agreed."""

    regions: tuple[RegionCheck, ...]
    block: tuple[Difference, ...]
    """Of a block's result, by the kernels that agreed."""
    fallbacks: tuple[str, ...]
    """Kinds of regions that disagree: the builder's kernels are played in their place."""

    @property
    def played(self) -> str:
        """What is played, in words."""
        kinds = dict.fromkeys(each.kind for each in self.regions)
        ours = ", ".join(kind for kind in kinds if kind not in self.fallbacks) or "none"
        theirs = ", ".join(self.fallbacks) or "none"
        return f"kernels between GEMMs: the project's for {ours}; fallbacks for {theirs}"

    @property
    def words(self) -> str:
        """Which disagree and by how much."""
        apart = [str(each) for each in self.regions if not each.agrees]
        return "; ".join(apart) or "block: " + ", ".join(map(str, self.block))


def compare(
    device: Device,
    kernels: Kernels,
    bundle: Bundle,
    recording: Recording,
    engines: Mapping[str, DeviceEngine],
) -> SelfCheck | None:
    """Compare every distinct region with its fallback, and a block played by both.

    Args:
        recording: of the bundle, with our kernels.
        engines: of the bundle and its fallbacks.

    Returns:
        None, after a warning, where it does not fit the device or a call fails.

    Raises:
        DeviceError: of kind ``sticky``: nothing else can be done, either.
    """
    try:
        return _compare(device, kernels, bundle, recording, engines)
    except (DeviceError, EnvironmentLacks) as error:
        if isinstance(error, DeviceError) and error.kind == "sticky":
            raise
        warnings.warn(
            f"kernels between GEMMs are played without having been compared: {error}",
            FastWanWarning,
            stacklevel=2,
        )
        return None


def _compare(
    device: Device,
    kernels: Kernels,
    bundle: Bundle,
    recording: Recording,
    engines: Mapping[str, DeviceEngine],
) -> SelfCheck:
    planned = plan(recording)
    fallbacks = recording.manifest.fallback_engines.values()
    scratch = max(planned.scratch, *(engine.scratch_bytes for engine in fallbacks))
    memory = DeviceMemory(device, replace(planned, scratch=scratch))
    try:
        player = Player(device, kernels, engines, memory, recording.events)
        memory.upload(bundle, player.streams[COMPUTE])
        return _Check(player, recording).run()
    finally:
        memory.release()


class _Check:
    def __init__(self, player: Player, recording: Recording) -> None:
        self._player = player
        self._recording = recording
        manifest = recording.manifest
        self._fallbacks = {
            region: (name, manifest.fallbacks[name].engine)
            for region, name in fallback_names(manifest).items()
        }
        (self._step,) = (stage for stage in recording.stages if stage.name == "step_0")

    def run(self) -> SelfCheck:
        operations = self._step.operations
        end, results = _block(operations)
        checks: dict[RegionOp, RegionCheck] = {}
        self._begin()
        self._play(operations[:end], lambda launch: self._compare(launch, checks))
        expected = [self._read(tensor) for tensor in results]
        self._play(operations[end:], lambda launch: self._compare(launch, checks))
        wrong = {check.kind for check in checks.values() if not check.agrees}
        self._begin()
        self._play(operations[:end], lambda launch: self._launch(launch, wrong))
        block = tuple(
            _block_difference(tensor, self._read(tensor), before)
            for tensor, before in zip(results, expected, strict=True)
        )
        if not all(each.rounding for each in block):
            wrong = {check.kind for check in checks.values()}
        return SelfCheck(
            regions=tuple(checks.values()), block=block, fallbacks=tuple(sorted(wrong))
        )

    def _begin(self) -> None:
        """A made-up prompt and noise, up to the first step."""
        recording, memory = self._recording, self._player.memory
        random = np.random.default_rng(0)
        embeds = np.zeros(recording.prompt_embeds.shape, np.float32)
        tokens = max(1, int(embeds.shape[1] * _TOKENS))
        embeds[:, :tokens] = random.normal(0, _EMBEDDING, embeds[:, :tokens].shape)
        for tensor in recording.embeds:
            memory.write(tensor, embeds)
        for noise in recording.noises:
            memory.write(noise, random.standard_normal(noise.shape, np.float32))
        for stage in recording.stages:
            if stage.name in ("tables", "text_kv"):
                self._enqueue(stage.operations)

    def _play(
        self, operations: Sequence[Operation], region: Callable[[LaunchRegion], None]
    ) -> None:
        """Play what has a fallback as `region` does, all else as it was recorded."""
        waiting: list[Operation] = []
        for operation in operations:
            if isinstance(operation, LaunchRegion) and operation.region in self._fallbacks:
                self._enqueue(waiting)
                waiting.clear()
                region(operation)
            else:
                waiting.append(operation)
        self._enqueue(waiting)

    def _enqueue(self, operations: Sequence[Operation]) -> None:
        self._player.enqueue([Stage(NAME, list(operations))])
        self._player.synchronize()

    def _launch(self, launch: LaunchRegion, fallbacks: set[str]) -> None:
        self._enqueue([self._fallback(launch) if launch.region.op in fallbacks else launch])

    def _compare(self, launch: LaunchRegion, checks: dict[RegionOp, RegionCheck]) -> None:
        """Leave the fallback's results in place of the region's."""
        region, fallback = launch.region, self._fallback(launch)
        if region in checks:
            self._enqueue([fallback])
            return
        dtypes = {name: tensor.dtype for name, tensor in fallback.outputs.items()}
        self._enqueue([launch])
        found = self._results(launch, dtypes)
        self._enqueue([fallback])
        expected = self._results(launch, dtypes)
        checks[region] = RegionCheck(
            kind=region.op,
            region=str(region),
            outputs=tuple(
                difference(name, found[name], expected[name], dtypes[name]) for name in found
            ),
        )

    def _results(self, launch: LaunchRegion, dtypes: Mapping[str, str]) -> dict[str, Array]:
        """Outputs of a region by name; the scales of codes are the output behind them."""
        names = [spec.name for spec in launch.region.outputs]
        read = [self._read(tensor) for tensor in launch.outputs]
        for index, name in enumerate(names):
            if dtypes[name] in PAIRED:
                read[index] = significant(read[index], read[index + 1])
        return dict(zip(names, read, strict=True))

    def _fallback(self, launch: LaunchRegion) -> RunEngine:
        return in_place_of(launch, *self._fallbacks[launch.region])

    def _read(self, tensor: Tensor) -> Array:
        """[rows, bytes of a row]."""
        raw = self._player.memory.download(tensor, self._player.streams[COMPUTE])
        return raw.reshape(-1, tensor.shape[-1] * tensor.itemsize)


def _block(operations: Sequence[Operation]) -> tuple[int, list[Tensor]]:
    """Where the first block ends, and what was made of it by then.

    It ends where a region comes again: with what that reads. Where none does the whole step counts,
    with what its last engine writes.
    """
    seen: set[RegionOp] = set()
    for index, operation in enumerate(operations):
        if isinstance(operation, LaunchRegion):
            if operation.region in seen:
                return index, [each for each in operation.inputs if _is_activation(each)]
            seen.add(operation.region)
    (*_, last) = (each for each in operations if isinstance(each, RunEngine))
    return len(operations), [each for each in last.outputs.values() if _is_activation(each)]


def _is_activation(tensor: Tensor) -> bool:
    return tensor.dtype == "bfloat16" and not tensor.buffer.fixed


def _block_difference(tensor: Tensor, found: Array, expected: Array) -> Difference:
    made = difference(tensor.buffer.name, found, expected, tensor.dtype)
    return made.model_copy(update={"rounding": made.whole <= BLOCK})


def warn_of_fallbacks(outcome: SelfCheck, recording: Recording, gpu: str) -> None:
    """Say which kernels are not played, why, and what that costs.

    Args:
        recording: with the fallbacks.
    """
    engines = [op.engine for op in recording.operations if isinstance(op, RunEngine)]
    played = sum(name in recording.manifest.fallbacks for name in engines)
    count = played // len(recording.schedule.steps)
    warnings.warn(
        f"{', '.join(outcome.fallbacks)} on {gpu} differ by more than rounding from what they "
        f"stand for ({outcome.words}): TensorRT's kernels are played for {count} nodes of a step. "
        "Videos are right and take longer; please report it with `fastwan-export selftest`",
        FastWanWarning,
        stacklevel=2,
    )
