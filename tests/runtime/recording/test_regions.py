"""Regions of several nodes: a made-up kind, one row of the table, chained behind the attention."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from pydantic import ValidationError
from torch import Tensor

from fastwan.bundle import Bundle
from fastwan.config import SAMPLERS
from fastwan.errors import BadInput
from fastwan.manifest import Region, RegionNode, TensorSpec
from fastwan.plugins.regions import REGIONS, Launch, RegionOp, region_op
from fastwan.quality.races import find_races
from fastwan.runtime.device.null import Call, NullDevice
from fastwan.runtime.device.platforms import null_platform
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.memory_plan import lifetimes, plan
from fastwan.runtime.recording.operations import LaunchRegion
from fastwan.runtime.recording.record import Recording, record

WORKSPACE = 1 << 24


@dataclass(frozen=True)
class Negate(RegionOp):
    """A kind that no kernel exists for: its input with the other sign."""

    op: ClassVar[str] = "Negate"

    spec: TensorSpec

    @classmethod
    def from_node(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> Negate:
        return cls(specs[node.inputs[0]])

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.spec,)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (self.spec,)

    @property
    def launches(self) -> tuple[Launch, ...]:
        return (Launch("negate", 2 * 2 * int(np.prod(self.spec.shape))),)

    @property
    def workspace_bytes(self) -> int:
        return WORKSPACE

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(-each for each in inputs)

    def desc(self) -> ctypes.Structure:
        return ctypes.Structure()

    def __str__(self) -> str:
        return "negation"


@pytest.fixture
def chained(
    segmented: Bundle, make_region: Callable[..., Region], monkeypatch: pytest.MonkeyPatch
) -> Bundle:
    """The segmented bundle with a negation behind the attention, in one region with it."""
    monkeypatch.setitem(REGIONS, "Negate", Negate)
    regions = {f"region_{i:02d}": chain(make_region(i), f"inner.{i}") for i in range(2)}
    return Bundle(segmented.root, segmented.manifest.model_copy(update={"regions": regions}))


def chain(first: Region, inner: str) -> Region:
    (out,) = first.outputs
    between = out.model_copy(update={"name": inner})
    (attention,) = first.nodes
    nodes = (
        attention.model_copy(update={"outputs": (inner,)}),
        RegionNode(op="Negate", inputs=(inner,), outputs=(out.name,), attributes={}),
    )
    return rebuilt(first, nodes=nodes, temporaries=(between,))


def rebuilt(region: Region, **update: object) -> Region:
    """A region with other fields, checked again."""
    return Region.model_validate(region.model_copy(update=update).model_dump())


def launches(recording: Recording) -> list[LaunchRegion]:
    step = next(stage for stage in recording.stages if stage.name == "step_0")
    return [op for op in step.operations if isinstance(op, LaunchRegion)]


def test_both_nodes_are_recorded_in_order(chained: Bundle) -> None:
    recorded = launches(record(chained.manifest, schedule_of(SAMPLERS["unipc"])))
    assert [type(op.region).op for op in recorded] == ["SageAttention3", "Negate"] * 2
    attention, negation = recorded[:2]
    assert negation.inputs == attention.outputs
    assert attention.outputs[0].buffer.name == "inner.0"


@pytest.mark.parametrize("processors", [0, 170])
def test_regions_carry_the_multiprocessors_of_the_platform(
    chained: Bundle, processors: int
) -> None:
    platform = replace(null_platform(chained), processors=processors)
    session = Session(platform, chained, schedule_of(SAMPLERS["unipc"]))
    attentions = [op.region for op in launches(session.recording)][::2]
    assert [each.desc().processors for each in attentions] == [processors] * 2


def test_the_value_between_them_lives_no_longer_than_the_region(chained: Bundle) -> None:
    recording = record(chained.manifest, schedule_of(SAMPLERS["unipc"]))
    layout, (lives, _) = plan(recording), lifetimes(recording)
    inner = [buffer for buffer in lives if buffer.name.startswith("inner")]
    assert len(inner) == 6  # two regions, three steps
    assert {lives[buffer].last - lives[buffer].first for buffer in inner} == {1}
    assert set(inner) <= set(layout.offsets)
    assert layout.workspace == layout.scratch == WORKSPACE


def play(session: Session, device: NullDevice) -> tuple[Call, ...]:
    session.load()
    session.prepare(np.zeros(session.recording.prompt_embeds.shape, np.float32))
    shape = session.recording.latents.shape
    session.video([np.zeros(shape, np.float32)] * len(session.recording.noises))
    return next(call.graph for call in device.calls if call.kind == "launch")


def test_a_video_counts_both_and_has_no_race(
    chained: Bundle, open_session: Callable[..., Session]
) -> None:
    device = NullDevice()
    graph = play(open_session(device, manifest=chained.manifest), device)
    names = Counter(call.name for call in graph if call.kind == "region")
    assert names == {"attention of 100 tokens": 6, "negation": 6}
    assert find_races(device.calls) == []


def test_a_race_on_the_value_between_them_is_found(
    chained: Bundle, open_session: Callable[..., Session]
) -> None:
    device = NullDevice()
    session = open_session(device, manifest=chained.manifest)
    negation = next(
        op
        for stage in session.recording.stages
        for op in stage.operations
        if isinstance(op, LaunchRegion) and isinstance(op.region, Negate)
    )
    negation.stream = 1
    play(session, device)
    assert {race.kind for race in find_races(device.calls)} >= {"read after write"}


def _swapped(region: Region) -> dict[str, object]:
    return {"nodes": region.nodes[::-1]}


def _unknown(region: Region) -> dict[str, object]:
    return {"temporaries": ()}


def _unused(region: Region) -> dict[str, object]:
    spare = region.temporaries[0].model_copy(update={"name": "spare"})
    first = region.nodes[0]
    first = first.model_copy(update={"outputs": (*first.outputs, "spare")})
    return {
        "nodes": (first, region.nodes[1]),
        "temporaries": (*region.temporaries, spare),
    }


def _unmade(region: Region) -> dict[str, object]:
    return {"nodes": region.nodes[:1]}


def _twice(region: Region) -> dict[str, object]:
    return {"nodes": (*region.nodes, region.nodes[1])}


def _two_of_a_name(region: Region) -> dict[str, object]:
    return {"temporaries": region.temporaries * 2}


def _over_an_input(region: Region) -> dict[str, object]:
    nodes = list(region.nodes)
    nodes[1] = nodes[1].model_copy(update={"outputs": (region.inputs[0].name,)})
    return {"nodes": tuple(nodes)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swapped, "which nobody makes before it"),
        (_unknown, "not its to write"),
        (_unused, "no node of the region reads 'spare'"),
        (_unmade, "no node of the region makes 'out.0'"),
        (_twice, "not its to write"),
        (_two_of_a_name, "one name"),
        (_over_an_input, "not its to write"),
    ],
)
def test_a_region_whose_nodes_do_not_fit_is_refused(
    chained: Bundle, change: Callable[[Region], dict[str, object]], message: str
) -> None:
    region = chained.manifest.regions["region_00"]
    assert rebuilt(region) == region
    with pytest.raises(ValidationError, match=message):
        rebuilt(region, **change(region))


def test_a_value_between_of_another_shape_is_refused(chained: Bundle) -> None:
    region = chained.manifest.regions["region_00"]
    specs = {spec.name: spec for spec in region.tensors}
    assert [region_op(node, specs).op for node in region.nodes] == ["SageAttention3", "Negate"]
    specs["inner.0"] = specs["inner.0"].model_copy(update={"shape": (1, 128, 255)})
    with pytest.raises(BadInput, match="takes out bfloat16"):
        region_op(region.nodes[0], specs)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_tokens": 100}, "num_heads missing"),
        ({"num_heads": "two"}, "num_heads 'two'"),
        ({"num_heads": 3}, "of 3 heads"),
        ({"num_heads": 2, "num_tokens": 129}, "num_tokens 129"),
        ({"num_heads": 2, "num_tokens": 0}, "num_tokens 0"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(
    make_region: Callable[..., Region], attributes: dict[str, int | str], message: str
) -> None:
    region = make_region(0)
    (node,) = region.nodes
    specs = {spec.name: spec for spec in region.tensors}
    region_op(node, specs)
    with pytest.raises(BadInput, match=message):
        region_op(node.model_copy(update={"attributes": attributes}), specs)
