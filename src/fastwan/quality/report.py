"""What ``inspect`` says of a bundle: kernels, dtypes, FP4 share, bytes and predicted time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fastwan.bundle import Bundle, Manifest
from fastwan.engines.coverage import check_coverage, is_fp4_gemm
from fastwan.engines.layers import LayerRecord, layer_from_json
from fastwan.quality.cost import STEPS, Cost, VideoCost, price, usual_records
from fastwan.quality.gpus import (
    GPUS,
    PUBLISHED_STEP_SECONDS,
    PUBLISHED_VIDEO_SECONDS,
)
from fastwan.quality.memory import device_bytes

Report = dict[str, object]

LABELS: Mapping[str, str] = {
    "files": "measured", "bytes": "measured", "linears": "measured", "fp4_linears": "measured",
    "kernels": "measured", "dtypes": "measured", "fp4_gemm_share": "measured",
    "scratch_bytes": "measured", "weight_bytes": "measured", "bytes_moved": "predicted",
    "memory_bound_bytes": "predicted", "flops": "predicted", "predicted_ms": "predicted",
    "floor_ms": "predicted", "seconds": "measured", "peak_rss_bytes": "measured",
    "device_bytes": "predicted",
}  # fmt: skip
"""How each figure was got: ``measured`` is read from files, the build and its records;
``predicted`` follows from them by a model. No figure was taken on a GPU."""

PUBLISHED_SHAPE = (480, 832, 81)


def bundle_layers(bundle: Bundle) -> dict[str, tuple[LayerRecord, ...]]:
    """Layer records by engine, from the hash-checked ``layers.json``."""
    return {name: tuple(map(layer_from_json, records)) for name, records in bundle.layers.items()}


def inspect_bundle(bundle: Bundle) -> Report:
    """Everything ``inspect --json`` prints.

    Figures of a component are for one run: of ``dit`` a denoising step (and, apart, the text key
    and value engine once a prompt and the tables of one timestep, which loading computes), of
    ``decoder`` one latent frame, of ``text_encoder`` one prompt of the usual length, in the profile
    that it falls into.

    Raises:
        BadInput: no bundle of this tool, or malformed layer records.
        VerificationFailed: ``layers.json`` differs from its hash.
    """
    manifest = bundle.manifest
    layers = bundle_layers(bundle)
    gpu = GPUS.get(manifest.target)
    costs = price(manifest, layers, gpu)
    present = dict.fromkeys(engine.component for engine in manifest.engines.values())
    shape = manifest.onnx.model.shape
    published = (shape.height, shape.width, shape.num_frames) == PUBLISHED_SHAPE
    return {
        "bundle": str(bundle.root),
        "model": manifest.onnx.model.name,
        "recipe": manifest.onnx.model.recipe,
        "shape": shape.model_dump(),
        "target": manifest.target,
        "backend": manifest.backend,
        "attention": manifest.attention,
        "sampler": manifest.sampler,
        "versions": {"fastwan-export": manifest.tool_version, **manifest.versions},
        "seconds": manifest.build.seconds,
        "peak_rss_bytes": manifest.build.peak_rss_bytes,
        "components": {
            component: component_report(manifest, layers, costs, component) for component in present
        },
        "engines": {
            name: _cost_fields(costs.engines[name])
            | {"component": engine.component, "runs": engine.runs}
            for name, engine in manifest.engines.items()
        },
        "regions": {name: _cost_fields(cost) for name, cost in costs.regions.items()},
        "device_bytes": device_bytes(manifest),
        "prediction": {
            "gpu": None if gpu is None else gpu.name,
            "rates_of": None if gpu is None else gpu.date,
            "step_ms": _ms(costs.step.seconds),
            "step_floor_ms": _ms(costs.step.floor_seconds),
            "video_ms": _ms(costs.video.seconds),
            "video_floor_ms": _ms(costs.video.floor_seconds),
            "published_step_ms": PUBLISHED_STEP_SECONDS * 1e3 if published else None,
            "published_video_ms": PUBLISHED_VIDEO_SECONDS * 1e3 if published else None,
            "covers": (
                f"text encoder, text_kv, {STEPS} steps, decoder; no copies to the host, and not "
                "the time tables, which are computed at loading"
            ),
        },
        "labels": dict(LABELS),
    }


def component_report(
    manifest: Manifest,
    layers: Mapping[str, Sequence[LayerRecord]],
    costs: VideoCost,
    component: str,
) -> Report:
    """Figures of one component; ``files`` and ``bytes`` are of its engines and their kin."""
    engines = {n: e for n, e in manifest.engines.items() if e.component == component}
    records = [r for name, e in engines.items() for r in usual_records(e, layers[name])]
    coverage = {name: check_coverage(layers[name], e.linears) for name, e in engines.items()}
    files = [f for name, f in manifest.files.items() if name.startswith(f"{component}/")]
    gemms = [record for record in records if record.kind == "gemm"]
    main = {"dit": costs.step, "decoder": costs.latent}.get(component)
    if main is None:
        main = sum((costs.engines[name] for name in engines), Cost())
    report: Report = {
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "linears": sum(len(linear.sources) for e in engines.values() for linear in e.linears),
        "fp4_linears": sum(len(linear.sources) for c in coverage.values() for linear in c.covered),
        "kernels": sum(record.kind != "host" for record in records),
        "kinds": dict(Counter(record.kind for record in records)),
        "dtypes": dict(Counter(record.precision for record in records if record.precision)),
        "fp4_gemm_share": _share(sum(map(is_fp4_gemm, gemms)), len(gemms)),
        "weight_bytes": sum(tensor.bytes() for record in records for tensor in record.constants),
        "scratch_bytes": max((engine.scratch_bytes for engine in engines.values()), default=0),
        **_cost_fields(main, kernels=False),
    }
    if component == "dit":
        text = (costs.engines[name] for name, e in engines.items() if e.runs == "prompt")
        report["per_prompt"] = _cost_fields(sum(text, Cost()))
        report["per_timestep"] = _cost_fields(costs.timestep)
    return report


def build_report(bundle: str, manifest: Manifest, report: Mapping[str, object]) -> Report:
    """What ``build-engine --json`` prints, from the report of `inspect_bundle`."""
    fields = ("files", "bytes", "linears", "fp4_linears", "kernels", "scratch_bytes")
    components = report["components"]
    assert isinstance(components, dict)
    return {
        "bundle": bundle,
        "target": manifest.target,
        "backend": manifest.backend,
        "attention": manifest.attention,
        "seconds": manifest.build.seconds,
        "peak_rss_bytes": manifest.build.peak_rss_bytes,
        "stages": manifest.build.stages,
        "cached": list(manifest.build.cached),
        "components": {
            name: {field: figures[field] for field in fields}
            for name, figures in components.items()
        },
        "labels": {name: LABELS[name] for name in (*fields, "seconds", "peak_rss_bytes")},
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _cost_fields(cost: Cost, *, kernels: bool = True) -> Report:
    fields: Report = {"kernels": cost.kernels} if kernels else {}
    return fields | {
        "bytes_moved": cost.bytes_moved,
        "memory_bound_bytes": cost.memory_bound_bytes,
        "flops": cost.flops,
        "predicted_ms": _ms(cost.seconds),
        "floor_ms": _ms(cost.floor_seconds),
    }
