"""What ``inspect`` says of a bundle: kernels, dtypes, linears, bytes and predicted time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fastwan.bundle import Bundle
from fastwan.engines.coverage import check_coverage
from fastwan.engines.layer_json import bundle_layers
from fastwan.engines.layers import LayerRecord
from fastwan.export.recipes import find_recipe
from fastwan.manifest import Cadence, Engine, Manifest
from fastwan.plugins.regions import region_op
from fastwan.quality.cost import (
    USUAL_TEXT_LENGTH,
    Cost,
    engine_cost,
    region_cost,
    region_op_cost,
    total,
    usual_records,
)
from fastwan.quality.fit import memory_note
from fastwan.quality.gpus import (
    PUBLISHED_MODEL,
    PUBLISHED_STEP_SECONDS,
    PUBLISHED_VIDEO_SECONDS,
    UNKNOWN,
    GpuRates,
    rates_of,
)
from fastwan.quality.inspection import (
    BuildReport,
    BuiltComponent,
    ComponentFigures,
    EngineFigures,
    FallbackFigures,
    Figures,
    InspectReport,
    Prediction,
    StageFigures,
    milliseconds,
)
from fastwan.quality.price import price
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.fallbacks import fallback_names
from fastwan.runtime.recording.memory_plan import plan
from fastwan.runtime.recording.record import Recording, record
from fastwan.runtime.recording.tensors import allocate
from fastwan.schema import BundleFacts
from fastwan.shapes import shape_text

PUBLISHED_SHAPE = (480, 832, 81)
COVERS = (
    "stages {stages}, with a prompt of at most {tokens} tokens, every cast, sum, memset and copy; "
    "not the time tables, which are computed at loading"
)


def inspect_bundle(bundle: Bundle) -> InspectReport:
    """Everything ``inspect --json`` prints.

    A bundle without a transformer has no video: no memory is planned and no time predicted for it,
    and the report says so.

    Raises:
        BadInput: no bundle of this tool, or malformed layer records.
        VerificationFailed: ``layers.json`` differs from its hash.
    """
    manifest = bundle.manifest
    layers = bundle_layers(bundle)
    gpu = rates_of(manifest.target)
    engines = {
        name: engine_cost(engine, layers[name], gpu) for name, engine in manifest.engines.items()
    }
    regions = {name: region_cost(each, gpu) for name, each in manifest.regions.items()}
    recording = _recording(manifest)
    return InspectReport(
        bundle=BundleFacts.of(bundle),
        seconds=manifest.build.seconds,
        peak_rss_bytes=manifest.build.peak_rss_bytes,
        components={
            name: _component(manifest, name, layers, engines, regions)
            for name in dict.fromkeys(engine.component for engine in manifest.engines.values())
        },
        engines={
            name: EngineFigures.of(engines[name], component=engine.component, runs=engine.runs)
            for name, engine in manifest.engines.items()
        },
        regions={name: Figures.of(cost) for name, cost in regions.items()},
        fallbacks=_fallbacks(manifest, layers, gpu),
        device_bytes=None if recording is None else plan(recording).device_bytes,
        prediction=None if recording is None else _prediction(recording, layers, gpu),
        note=memory_note(manifest) if recording else "the bundle has no transformer: no video",
        shapes=_bytes_by_shape(manifest),
    )


def _bytes_by_shape(manifest: Manifest) -> dict[str, int]:
    if not manifest.shapes:
        return {}
    readers = Counter(name for part in manifest.parts for name in part.files)
    return {
        shape_text(part.shape): sum(
            manifest.files[name].bytes
            for name in part.files & manifest.files.keys()
            if readers[name] == 1
        )
        for part in manifest.parts
    }


def _fallbacks(
    manifest: Manifest, layers: Mapping[str, Sequence[LayerRecord]], gpu: GpuRates
) -> dict[str, FallbackFigures]:
    names = fallback_names(manifest)
    nodes = Counter(
        region_op(node, {spec.name: spec for spec in region.tensors})
        for region in manifest.regions.values()
        for node in region.nodes
    )
    return {
        name: FallbackFigures.of(
            engine_cost(manifest.fallbacks[name].engine, layers.get(name, ()), gpu),
            kind=op.op,
            bytes=manifest.engine_record(manifest.fallbacks[name].engine).bytes,
            scratch_bytes=manifest.fallbacks[name].engine.scratch_bytes,
            nodes=nodes[op],
            node_ms=milliseconds(region_op_cost(op, gpu).seconds),
        )
        for op, name in names.items()
    }


def _recording(manifest: Manifest) -> Recording | None:
    if not any(engine.component == "dit" for engine in manifest.engines.values()):
        return None
    return record(manifest, schedule_of(manifest.sampler_spec()))


def _component(
    manifest: Manifest,
    component: str,
    layers: Mapping[str, Sequence[LayerRecord]],
    engine_costs: Mapping[str, Cost],
    region_costs: Mapping[str, Cost],
) -> ComponentFigures:
    engines = {n: e for n, e in manifest.engines.items() if e.component == component}
    records = [r for name, e in engines.items() for r in usual_records(e, layers[name])]
    coverage = {name: check_coverage(layers[name], e.linears) for name, e in engines.items()}
    used = (n for n in manifest.parts[0].files if n.startswith(f"{component}/"))
    files = [manifest.files[name] for name in used if name in manifest.files]
    gemms = [record for record in records if record.kind == "gemm"]
    inner = {n: e for n, e in engines.items() if e.runs in ("step", "latent")} or engines
    beside = {n: e for n, e in engines.items() if n not in inner}
    between = [name for name, each in manifest.regions.items() if each.component == component]
    run = [engine_costs[name] for name in inner] + [region_costs[name] for name in between]
    return ComponentFigures(
        files=len(files),
        bytes=sum(file.bytes for file in files),
        linears=sum(
            len(linear.sources)
            for engine in engines.values()
            for linear in engine.linears
            if find_recipe(linear.format).quantised
        ),
        quantised_linears=sum(
            len(linear.sources) for c in coverage.values() for linear in c.covered
        ),
        kernels=sum(record.kind != "host" for record in records),
        scratch_bytes=max((engine.scratch_bytes for engine in engines.values()), default=0),
        kinds=Counter(record.kind for record in records),
        dtypes=Counter(record.precision for record in records if record.precision),
        regions=Counter(node.op for name in between for node in manifest.regions[name].nodes),
        quantised_gemm_share=_share(gemms, engines.values()),
        weight_bytes=sum(tensor.bytes() for record in records for tensor in record.constants)
        + sum(allocate(spec).size for e in engines.values() for spec in e.constants),
        per_run=Figures.of(total(run)),
        per_prompt=_apart(beside, "prompt", engine_costs),
        per_timestep=_apart(beside, "schedule", engine_costs),
    )


def _share(gemms: Sequence[LayerRecord], engines: Iterable[Engine]) -> float:
    """Share of GEMMs that are of the format of one of the engines' linears."""
    formats = {linear.format for engine in engines for linear in engine.linears}
    gates = [gate for gate in (find_recipe(name).gate for name in formats) if gate is not None]
    held = sum(any(gate.computes(gemm) for gate in gates) for gemm in gemms)
    return held / len(gemms) if gemms else 0.0


def _apart(
    engines: Mapping[str, Engine], runs: Cadence, costs: Mapping[str, Cost]
) -> Figures | None:
    """Figures of the engines of one cadence; None without any."""
    names = [name for name, engine in engines.items() if engine.runs == runs]
    return Figures.of(total(costs[name] for name in names)) if names else None


def _prediction(
    recording: Recording, layers: Mapping[str, Sequence[LayerRecord]], gpu: GpuRates
) -> Prediction:
    cost = price(recording, layers, gpu)
    steps, video = cost.of(cost.steps), cost.video
    sober = price(recording, layers, gpu.sober or UNKNOWN)
    shape = recording.manifest.onnx.model.shape
    published = (
        recording.manifest.onnx.model.name == PUBLISHED_MODEL
        and (shape.height, shape.width, shape.num_frames) == PUBLISHED_SHAPE
    )
    names = [name for name in cost.stages if name != "tables"]
    return Prediction(
        gpu=gpu.name or None,
        rates_date=gpu.date or None,
        stages={
            name: StageFigures.of(stage.cost, enqueues=stage.enqueues.total())
            for name, stage in cost.stages.items()
        },
        step_ms=milliseconds(steps.seconds / len(cost.steps)),
        step_floor_ms=milliseconds(steps.floor_seconds / len(cost.steps)),
        video_ms=milliseconds(video.seconds),
        video_floor_ms=milliseconds(video.floor_seconds),
        sober_rates=None if gpu.sober is None else f"{gpu.sober.date}: {gpu.sober.source}",
        sober_step_ms=milliseconds(sober.of(sober.steps).seconds / len(sober.steps)),
        sober_video_ms=milliseconds(sober.video.seconds),
        published_step_ms=PUBLISHED_STEP_SECONDS * 1e3 if published else None,
        published_video_ms=PUBLISHED_VIDEO_SECONDS * 1e3 if published else None,
        covers=COVERS.format(stages=", ".join(names), tokens=USUAL_TEXT_LENGTH),
    )


def build_report(inspected: InspectReport, manifest: Manifest) -> BuildReport:
    """What ``build-engine --json`` prints, from the report of `inspect_bundle`."""
    fields = set(BuiltComponent.model_fields)
    return BuildReport(
        bundle=inspected.bundle,
        seconds=manifest.build.seconds,
        peak_rss_bytes=manifest.build.peak_rss_bytes,
        stages=manifest.build.stages,
        cached=manifest.build.cached,
        components={
            name: BuiltComponent(**figures.model_dump(include=fields))
            for name, figures in inspected.components.items()
        },
        shapes=inspected.shapes,
    )
