"""The price of a recorded video: every operation counted once, on its stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from fastwan.bundle import Bundle
from fastwan.config import SAMPLERS
from fastwan.engines.layer_json import bundle_layers
from fastwan.engines.layers import LayerRecord
from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec
from fastwan.quality.cost import Cost, region_op_cost
from fastwan.quality.gpus import GPUS, UNKNOWN
from fastwan.quality.price import enqueues, operation_cost, price, usual_stages
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.operations import (
    Barrier,
    Cast,
    Combine,
    Copy,
    LaunchRegion,
    Mark,
    Operation,
    RunEngine,
    Signal,
    Zero,
)
from fastwan.runtime.recording.record import Recording, record
from fastwan.runtime.recording.recorder import Stage
from fastwan.runtime.recording.tensors import allocate

GPU = GPUS["rtx5090"]
LATENT = 16 * 3 * 2 * 4
"""Elements of the latents."""


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def layers(bundle: Bundle) -> dict[str, tuple[LayerRecord, ...]]:
    return bundle_layers(bundle)


@pytest.fixture
def recording(bundle: Bundle) -> Recording:
    return record(bundle.manifest, schedule_of(SAMPLERS["unipc"]))


Layers = dict[str, tuple[LayerRecord, ...]]


def bytes_of(layers: Layers, name: str) -> int:
    return sum(tensor.bytes() for each in layers[name] for tensor in each.tensors)


def test_a_step_is_its_engines_regions_casts_and_sums(recording: Recording, layers: Layers) -> None:
    stage = price(recording, layers, GPU).stages["step_1"]
    assert stage.enqueues == Counter(engine=2, region=1, combine=1, cast=1, copy=0, zero=0)
    (launch,) = (
        op for s in recording.stages if s.name == "step_1" for op in s.operations
        if isinstance(op, LaunchRegion)
    )  # fmt: skip
    engines = bytes_of(layers, "segment_00") + bytes_of(layers, "segment_01")
    # The latents are cast from fp32 to bf16. The sum reads the noise, the first prediction, the
    # latents and the velocity (bf16), and writes the next latents; no later step reads this
    # step's own prediction.
    cast, sums = LATENT * (4 + 2), LATENT * (4 + 4 + 4 + 2 + 4)
    attention = region_op_cost(launch.region, GPU).bytes_moved
    assert stage.cost.bytes_moved == engines + attention + cast + sums
    assert stage.cost.kernels == 5 + 2 + 1 + 1


@pytest.mark.parametrize("kind", [RunEngine, LaunchRegion, Combine, Cast, Copy])
def test_no_operation_is_free(recording: Recording, layers: Layers, kind: type[Operation]) -> None:
    """Taking one operation out of a stage makes the video shorter."""
    before = price(recording, layers, GPU).video
    (stage,) = (stage for stage in recording.stages if stage.name == "step_0")
    operation = next(op for op in stage.operations if isinstance(op, kind))
    stage.operations.remove(operation)
    after = price(recording, layers, GPU).video
    assert after.seconds < before.seconds
    assert after.bytes_moved < before.bytes_moved


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_another_number_of_steps_is_another_video(
    bundle: Bundle, layers: Layers, steps: int
) -> None:
    usual = price(
        record(bundle.manifest, schedule_of(replace(SAMPLERS["unipc"], steps=3))), layers, GPU
    )
    other = price(
        record(bundle.manifest, schedule_of(replace(SAMPLERS["unipc"], steps=steps))), layers, GPU
    )
    assert len(other.steps) == steps
    runs = steps - 3
    engines = bytes_of(layers, "segment_00") + bytes_of(layers, "segment_01")
    gained = other.video.bytes_moved - usual.video.bytes_moved
    assert gained / runs > engines
    assert (other.video.seconds - usual.video.seconds) / runs > 5 * GPU.launch_seconds
    for name in ("text", "text_kv", "decode"):
        assert other.stages[name] == usual.stages[name]


def test_the_other_sampler_uploads_more_noise(bundle: Bundle, layers: Layers) -> None:
    unipc_video, dmd_video = (
        price(record(bundle.manifest, schedule_of(SAMPLERS[name])), layers, GPU)
        for name in ("unipc", "dmd")
    )
    assert dmd_video.stages["step_0"].enqueues["copy"] == 3
    assert unipc_video.stages["step_0"].enqueues["copy"] == 1
    saved = unipc_video.stages["step_0"].cost.seconds - dmd_video.stages["step_0"].cost.seconds
    assert saved < -2 * LATENT * 4 / GPU.host_bytes_per_second


def test_the_prompt_is_priced_at_the_usual_length(recording: Recording, layers: Layers) -> None:
    assert recording.text is not None
    assert recording.text.longest == 256
    text = price(recording, layers, GPU).stages["text"]
    # The second profile's two kernels at 128 tokens; the embeddings in, the hidden states out.
    assert text.cost.kernels == 2
    assert text.cost.bytes_moved == 2 * 2 * 2 * 128 + 2 * 128 * 8 * 2


def test_what_loading_computes_is_no_part_of_a_video(recording: Recording, layers: Layers) -> None:
    cost = price(recording, layers, GPU)
    assert cost.stages["tables"].cost.kernels == 3
    assert cost.video == cost.of(name for name in cost.stages if name != "tables")
    assert cost.launch == ("step_0", "step_1", "step_2", "decode")


def leaves(kind: type) -> set[type]:
    """Classes below `kind` that no other class is derived from."""
    below = kind.__subclasses__()
    return set().union(*map(leaves, below)) if below else {kind}


def test_every_kind_of_operation_has_a_price_or_is_order_alone(
    recording: Recording, bundle: Bundle, layers: Layers
) -> None:
    operations = [op for stage in recording.stages for op in stage.operations]
    kinds = {type(op) for op in operations} | {Barrier}
    own = {kind for kind in leaves(Operation) if kind.__module__ == Operation.__module__}
    assert kinds == own
    for operation in operations:
        cost = operation_cost(operation, bundle.manifest, layers, GPU)
        assert (cost.seconds > 0) == (not isinstance(operation, (Barrier, Mark, Signal)))
        assert (cost.kernels > 0) == isinstance(operation, (RunEngine, LaunchRegion, Combine, Cast))


def test_an_unknown_operation_is_no_free_one(bundle: Bundle, layers: Layers) -> None:
    @dataclass(kw_only=True, eq=False)
    class Added(Operation):
        pass

    with pytest.raises(TypeError, match="no price is known for Added"):
        operation_cost(Added(), bundle.manifest, layers, GPU)
    with pytest.raises(KeyError):
        enqueues([Stage("step_0", [Added()])])
    assert enqueues([Stage("step_0", [Barrier()])]).total() == 0


def test_an_engine_without_records_has_no_price(recording: Recording, layers: Layers) -> None:
    price(recording, layers, GPU)
    without = {name: records for name, records in layers.items() if name != "segment_01"}
    with pytest.raises(BadInput, match="no layer records of engine segment_01"):
        price(recording, without, GPU)


def test_a_target_without_rates_has_bytes_and_no_time(recording: Recording, layers: Layers) -> None:
    known, unknown = (price(recording, layers, gpu) for gpu in (GPU, UNKNOWN))
    for name, stage in unknown.stages.items():
        assert stage.cost.bytes_moved == known.stages[name].cost.bytes_moved
        assert stage.cost.seconds != stage.cost.seconds  # NaN
    assert known.video.seconds > 0


def tensor(name: str, size: int, space: str = "device") -> object:
    return allocate(TensorSpec(name=name, dtype="uint8", shape=(size,)), space=space)  # type: ignore[arg-type]


def test_a_copy_beside_the_kernels_counts_where_it_sticks_out(
    recording: Recording, layers: Layers
) -> None:
    """Two streams by hand: the copy waits for the first memset and runs beside the second."""
    gpu = replace(GPU, bytes_per_second=1e6, host_bytes_per_second=1e3, launch_seconds=0.0)
    big, small = tensor("big", 2_000_000), tensor("small", 1000)
    host = tensor("host", 1000, "host")
    first = Zero(target=small, signal=0)  # 1 ms
    copy = Copy(source=small, target=host, stream=1, waits=[0], signal=1)  # 1 s
    second = Zero(target=big)  # 2 s
    join = Barrier(waits=[1])

    def seconds(*operations: Operation) -> float:
        stage = Stage("decode", list(operations))
        return price(replace(recording, stages=[stage]), layers, gpu).video.seconds

    assert seconds(first, copy, second, join) == pytest.approx(0.001 + 2.0)
    assert seconds(first, second, copy, join) == pytest.approx(0.001 + 2.0)
    late = replace(second, signal=2)
    assert seconds(first, late, replace(copy, waits=[2]), join) == pytest.approx(0.001 + 2.0 + 1.0)
    serial = replace(copy, stream=0, waits=[])
    assert seconds(first, serial, second) == pytest.approx(0.001 + 1.0 + 2.0)


@pytest.mark.parametrize(
    ("source", "target", "moved", "seconds"),
    [
        ("host", "device", 1000, 1000 / 63e9),
        ("device", "host", 1000, 1000 / 63e9),
        ("device", "device", 2000, 2000 / 1.79e12),
    ],
)
def test_a_copy_takes_the_bus_or_the_memory(
    bundle: Bundle, layers: Layers, source: str, target: str, moved: int, seconds: float
) -> None:
    copy = Copy(source=tensor("a", 1000, source), target=tensor("b", 1000, target))  # type: ignore[arg-type]
    cost = operation_cost(copy, bundle.manifest, layers, GPU)
    assert cost == Cost(0, moved, moved, 0, pytest.approx(seconds + 2e-6), 0.0)


def test_the_usual_stages_are_those_of_the_recording(recording: Recording) -> None:
    names = [stage.name for stage in recording.stages]
    assert [stage.name for stage in usual_stages(recording)] == names
