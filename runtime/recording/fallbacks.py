"""Nodes of regions played by the backend's own kernels in place of the project's."""

from __future__ import annotations

from collections.abc import Collection

from fastwan.errors import BadInput
from fastwan.manifest import Engine, Manifest, TensorSpec
from fastwan.plugins.regions import RegionOp, region_op
from fastwan.runtime.recording.operations import LaunchRegion, RunEngine
from fastwan.runtime.recording.recorder import scratch
from fastwan.runtime.recording.tensors import Tensor, packed_pairs


def fallback_names(manifest: Manifest) -> dict[RegionOp, str]:
    """Name of the engine that a bundle holds in place of a node, by what is launched for it.

    Raises:
        BadInput: see `fastwan.plugins.regions.region_op`.
    """
    return {
        region_op(each.node, {spec.name: spec for spec in each.tensors}): name
        for name, each in manifest.fallbacks.items()
    }


def fallbacks_of(manifest: Manifest, kinds: Collection[str]) -> dict[RegionOp, tuple[str, Engine]]:
    """Engines in place of the nodes of some kinds, with their names.

    Raises:
        BadInput: the bundle has none for a node of these kinds.
    """
    found = {
        made: (name, manifest.fallbacks[name].engine)
        for made, name in fallback_names(manifest).items()
        if made.op in kinds
    }
    if lacking := set(kinds) - {made.op for made in found}:
        raise BadInput(
            f"bundle has no fallback of {min(lacking)}",
            where="manifest.json",
            fix="build it again with this version",
        )
    return found


def in_place_of(launch: LaunchRegion, name: str, engine: Engine) -> RunEngine:
    """The run of an engine that reads and writes what a region does.

    Args:
        engine: of `fallbacks_of`; its tensors have the names of the region's.

    Raises:
        BadInput: it takes other tensors.
    """
    region = launch.region
    read = {s.name: t for s, t in zip(region.inputs, launch.inputs, strict=True)}
    written = {s.name: t for s, t in zip(region.outputs, launch.outputs, strict=True)}
    return RunEngine(
        engine=name,
        inputs={spec.name: _fitted(read[spec.name], spec, name) for spec in engine.inputs},
        outputs={spec.name: _fitted(written[spec.name], spec, name) for spec in engine.outputs},
        scratch=scratch(engine.scratch_bytes),
    )


def _fitted(tensor: Tensor, spec: TensorSpec, name: str) -> Tensor:
    """The same memory as an engine calls it: 4-bit codes are bytes to a region."""
    fitted = packed_pairs(tensor, spec.dtype) or tensor
    if (fitted.dtype, fitted.shape) != (spec.dtype, spec.shape):
        raise BadInput(
            f"{spec.name} of {name} is {spec.dtype} {list(spec.shape)}, the region has "
            f"{tensor.dtype} {list(tensor.shape)}",
            where="manifest.json",
            fix="build the bundle again",
        )
    return fitted
