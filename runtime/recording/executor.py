"""Engines of a bundle as an executor that records what it would enqueue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from fastwan.errors import BadInput
from fastwan.manifest import Engine, Region, TensorSpec
from fastwan.plugins.regions import RegionOp, region_op
from fastwan.runtime.model.executor import fixed_shape
from fastwan.runtime.recording.fallbacks import in_place_of
from fastwan.runtime.recording.operations import LaunchRegion, RunEngine
from fastwan.runtime.recording.recorder import Recorder, scratch
from fastwan.runtime.recording.tensors import Tensor, allocate, resolved


class RecordingExecutor:
    """Engines that run one after the other, with the regions between them, as one graph.

    Args:
        call: what the schedule calls a run.
        engines: in the order in which they run.
        regions: each is launched behind its engine.
        keep: results stay from one video to the next.
        fallbacks: name and record of the engine that runs in place of a node, by what else would
            be launched for it.
    """

    def __init__(
        self,
        recorder: Recorder,
        call: str,
        engines: Mapping[str, Engine],
        regions: Mapping[str, Region] | None = None,
        *,
        processors: int = 0,
        keep: bool = False,
        fallbacks: Mapping[RegionOp, tuple[str, Engine]] | None = None,
    ) -> None:
        self._recorder = recorder
        self._call = call
        self._engines = engines
        self._regions = regions or {}
        self._processors = processors
        self._keep = keep
        self._fallbacks = fallbacks or {}
        self._constants: dict[str, Tensor] = {}
        self._inputs: dict[str, TensorSpec] = {}
        made: dict[str, TensorSpec] = {}
        read: set[str] = set()
        for link in self._links():
            for spec in link.inputs:
                read.add(spec.name)
                if spec.name not in made:
                    self._inputs.setdefault(spec.name, spec)
            made |= {spec.name: spec for spec in link.outputs}
        self._outputs = {name: spec for name, spec in made.items() if name not in read}

    def _links(self) -> Iterator[Engine | Region]:
        for name, engine in self._engines.items():
            yield engine
            yield from (region for region in self._regions.values() if region.after == name)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._outputs

    def full(self, name: str, value: float = 0.0) -> Tensor:
        spec = self._inputs.get(name) or self._outputs[name]
        shape = fixed_shape(spec)
        if not value:
            tensor = allocate(spec, shape)
            self._recorder.zero(tensor)
            return tensor
        content = np.full(shape, value, np.dtype(spec.dtype)).tobytes()
        return allocate(spec, shape, name=f"{name}={value:g}", fixed=True, content=content)

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """See `Executor.run`; `outputs` may name what one engine hands to the next, too.

        Raises:
            BadInput: an engine reads what no engine before it makes and nobody gives, or a
                tensor of another shape or dtype, or of a shape in none of its profiles.
        """
        if missing := self._inputs.keys() - inputs.keys():
            raise BadInput(
                f"nothing provides {', '.join(sorted(missing))}",
                where=self._call,
                fix="build the bundle again",
            )
        self._recorder.call(self._call)
        values = {**inputs, **(outputs or {})}
        given = set(outputs or ())
        for name, engine in self._engines.items():
            self._run_engine(name, engine, values, given)
            for region in self._regions.values():
                if region.after == name:
                    self._launch(region, values)
        return {name: values[name] for name in self._outputs}

    def _run_engine(
        self, name: str, engine: Engine, values: dict[str, Tensor], given: set[str]
    ) -> None:
        axes: dict[str, int] = {}
        read = {}
        for spec in engine.inputs:
            tensor = values[spec.name]
            axes.update(
                (size, found)
                for size, found in zip(spec.shape, tensor.shape, strict=False)
                if isinstance(size, str)
            )
            read[spec.name] = self._recorder.cast(tensor, spec, resolved(spec, axes))
        for spec in engine.outputs:
            if spec.name not in given:
                kept = self._keep and spec.name in self._outputs
                values[spec.name] = allocate(spec, fixed_shape(spec), fixed=kept)
        shapes = {input_name: tensor.shape for input_name, tensor in read.items()}
        read |= {spec.name: self._constant(spec) for spec in engine.constants}
        profile = engine.profile_for(shapes)
        if profile is None:
            found = ", ".join(f"{each} {list(shape)}" for each, shape in shapes.items())
            raise BadInput(f"{name} has no profile for {found}", where=self._call)
        self._recorder.add(
            RunEngine(
                engine=name,
                inputs=read,
                outputs={spec.name: values[spec.name] for spec in engine.outputs},
                scratch=scratch(engine.scratch_bytes),
                profile=profile,
            )
        )

    def _constant(self, spec: TensorSpec) -> Tensor:
        """An initializer in memory of its own, the same for all that read it."""
        if spec.name not in self._constants:
            self._constants[spec.name] = allocate(spec, fixed=True, content=spec.name)
        return self._constants[spec.name]

    def _launch(self, region: Region, values: dict[str, Tensor]) -> None:
        specs = {spec.name: spec for spec in region.tensors}
        values |= {spec.name: self._constant(spec) for spec in region.constants}
        for node in region.nodes:
            op = region_op(node, specs).on(self._processors)
            for name in node.outputs:
                values[name] = allocate(specs[name])
            launch = LaunchRegion(
                region=op,
                inputs=tuple(values[name] for name in node.inputs),
                outputs=tuple(values[name] for name in node.outputs),
                workspace=scratch(op.workspace_bytes),
            )
            fallback = self._fallbacks.get(op)
            self._recorder.add(launch if fallback is None else in_place_of(launch, *fallback))
