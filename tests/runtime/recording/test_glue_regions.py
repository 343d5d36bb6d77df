"""Glue behind the attention, recorded and played on the NULL device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from fastwan.bundle import Bundle
from fastwan.manifest import Region, TensorSpec
from fastwan.plugins.regions import region_op
from fastwan.plugins.regions.glue import GlueOp
from fastwan.quality.races import find_races
from fastwan.runtime.device.null import NullDevice
from fastwan.runtime.device.session import Session
from testkit.fake_regions import zeros
from testkit.glue_nodes import SMALL, node_of

Open = Callable[..., Session]


def renamed(spec: TensorSpec, suffix: str) -> TensorSpec:
    return spec.model_copy(update={"name": f"glue.{spec.name}.{suffix}"})


def behind(first: Region, op: GlueOp, suffix: str) -> Region:
    """The attention's region with a node of the glue that reads what the attention writes."""
    node, _ = node_of(op)
    (between,) = first.outputs
    constants = [renamed(spec, suffix) for spec in list(op.inputs)[1:]]
    outputs = tuple(renamed(spec, suffix) for spec in op.outputs)
    update = {
        "inputs": (between.name, *(spec.name for spec in constants)),
        "outputs": tuple(spec.name for spec in outputs),
        "attributes": node.attributes,
    }
    content = {
        "nodes": (*first.nodes, node.model_copy(update=update)),
        "constants": (*first.constants, *constants),
        "temporaries": (between,),
        "outputs": outputs,
    }
    return Region.model_validate(first.model_copy(update=content).model_dump())


def with_glue(segmented: Bundle, op: GlueOp) -> Bundle:
    """The segmented bundle, its attention handed on through the glue."""
    manifest = segmented.manifest
    regions, engines = {}, dict(manifest.engines)
    for index, (name, region) in enumerate(manifest.regions.items()):
        regions[name] = behind(region, op, str(index))
        reader = f"segment_{index + 1:02d}"
        kept = [spec for spec in engines[reader].inputs if spec != region.outputs[0]]
        inputs = (*kept, *regions[name].outputs)
        engines[reader] = engines[reader].model_copy(update={"inputs": inputs})
    update = {"engines": engines, "regions": regions}
    return Bundle(segmented.root, manifest.model_copy(update=update))


@pytest.mark.parametrize("op", SMALL, ids=lambda op: op.op)
def test_a_video_counts_the_kernel_and_has_no_race(
    segmented: Bundle, open_session: Open, monkeypatch: pytest.MonkeyPatch, op: GlueOp
) -> None:
    bundle = with_glue(segmented, op)
    weights = zeros(bundle.manifest.regions)
    monkeypatch.setattr(
        "fastwan.runtime.device.memory.initializers",
        lambda _bundle, names: {name: weights[name] for name in names if name in weights}.items(),
    )
    specs = {spec.name: spec for spec in bundle.manifest.regions["region_00"].tensors}
    assert region_op(bundle.manifest.regions["region_00"].nodes[1], specs) == op
    device = NullDevice()
    session = open_session(device, manifest=bundle.manifest)
    session.load()
    session.prepare(np.zeros(session.recording.prompt_embeds.shape, np.float32))
    allocated = len(device.calls)
    shape = session.recording.latents.shape
    for _ in range(2):
        session.video([np.zeros(shape, np.float32)] * len(session.recording.noises))
    during = Counter(call.kind for call in device.calls[allocated:])
    assert during["launch"] >= 2
    assert not [kind for kind in during if "alloc" in kind]
    graph = next(call.graph for call in device.calls if call.kind == "launch")
    names = Counter(call.name for call in graph if call.kind == "region")
    assert names == {"attention of 100 tokens": 6, str(op): 6}
    assert find_races(device.calls) == []
