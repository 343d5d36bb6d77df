"""Each fusion of the table, end to end: real engines of the tiny transformer, played on nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from fastwan.bundle import Bundle, open_bundle
from fastwan.config import FUSIONS, SAMPLERS
from fastwan.dtypes import packed_bytes
from fastwan.engines.build import ONNX_FOLDER
from fastwan.engines.plan import plan_sources
from fastwan.errors import BadInput
from fastwan.export.attentions import find_attention
from fastwan.export.passes.fusions import NONE, Fusion, find_fusion
from fastwan.plugins.regions import region_op
from fastwan.quality.bench import counts
from fastwan.quality.report import inspect_bundle
from fastwan.quality.verify.engine_plan import check_engine_plan
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.constants import initializers
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.fallbacks import fallback_names
from fastwan.runtime.recording.tensors import allocate
from testkit.fused_bundle import build_fused

REGIONS = {
    "none": {"SageAttention3": 1},
    "gelu": {"SageAttention3": 1, "GeluQuantize": 1},
    "gelu+cross": {"SageAttention3": 1, "CrossAttention": 1, "GeluQuantize": 1},
    "all": {
        "SageAttention3": 1,
        "Quantize": 1,
        "CrossAttention": 1,
        "GeluQuantize": 1,
        "ResidualNormQuantize": 3,
    },
}
"""Nodes of a block that are launched between engines."""


@pytest.fixture(scope="module", params=list(FUSIONS))
def fused(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The transformer of the tiny bundle, built anew with a fusion."""
    out = tmp_path_factory.mktemp("fused") / "bundle"
    build_fused(tiny_bundle, out, request.param)
    return open_bundle(out)


@pytest.mark.trt
def test_no_linear_loses_fp4(fused: Bundle) -> None:
    report = inspect_bundle(fused)
    part = report.components["dit"]
    assert part.linears == part.quantised_linears == 10 * fused.manifest.onnx.model.dit.num_layers
    assert report.bundle.fusion == fused.manifest.fusion


@pytest.mark.trt
def test_the_regions_of_a_block_are_those_of_the_fusion(fused: Bundle) -> None:
    layers = fused.manifest.onnx.model.dit.num_layers
    expected = {op: n * layers for op, n in REGIONS[fused.manifest.fusion].items()}
    if "ResidualNormQuantize" in expected:  # the first norm has no residual, the last no quantiser
        expected["ResidualNormQuantize"] -= 1
        expected |= {"NormQuantize": 1, "ResidualNorm": 1}
    found = Counter(node.op for each in fused.manifest.regions.values() for node in each.nodes)
    assert found == expected
    assert inspect_bundle(fused).components["dit"].regions == expected


@pytest.mark.trt
def test_every_lifted_node_has_a_fallback(fused: Bundle) -> None:
    """One for each kind, shape and set of attributes; the attention replaced nothing."""
    manifest = fused.manifest
    nodes = {
        region_op(node, {spec.name: spec for spec in region.tensors})
        for region in manifest.regions.values()
        for node in region.nodes
    }
    lifted = {op for op in nodes if op.op != "SageAttention3"}
    assert fallback_names(manifest).keys() == lifted
    once = 2 if manifest.fusion == "all" else 0  # the first norm and the last
    assert len(lifted) == sum(REGIONS[manifest.fusion].values()) - 1 + once
    for each in manifest.fallbacks.values():
        assert {each.engine.file, each.graph} <= manifest.files.keys()
        assert not each.engine.linears
        fused.file(each.graph)
        model = onnx.load_from_string(fused.read(each.graph))
        assert all(len(tensor.dims) < 2 for tensor in model.graph.initializer)
        assert [value.name for value in model.graph.input] == [s.name for s in each.engine.inputs]


@pytest.mark.trt
def test_fallbacks_are_not_counted_as_played(fused: Bundle) -> None:
    report = inspect_bundle(fused)
    assert report.fallbacks.keys() == fused.manifest.fallbacks.keys()
    bare = Bundle(fused.root, fused.manifest.model_copy(update={"fallbacks": {}}))
    without = inspect_bundle(bare)
    assert report.prediction == without.prediction
    assert report.device_bytes == without.device_bytes
    assert report.components["dit"].per_run == without.components["dit"].per_run
    assert report.engines == without.engines


@pytest.mark.trt
@pytest.mark.parametrize("fault", [None, "attribute", "removed", "graph"])
def test_verify_holds_fallbacks_to_the_graph(fused: Bundle, fault: str | None) -> None:
    if not fused.manifest.fallbacks:
        pytest.skip("nothing is lifted")
    fallbacks = dict(fused.manifest.fallbacks)
    name, first = next(iter(fallbacks.items()))
    if fault == "attribute":
        node = first.node.model_copy(update={"attributes": {"eps": 0.5}})
        fallbacks[name] = first.model_copy(update={"node": node})
    elif fault == "removed":
        fallbacks.pop(name)
        fallbacks["another"] = first
    elif fault == "graph":
        fallbacks[name] = first.model_copy(update={"graph": f"{ONNX_FOLDER}/export.json"})
    changed = fused.manifest.model_copy(update={"fallbacks": fallbacks})
    check = check_engine_plan(Subject(Bundle(fused.root, changed)))
    assert bool(check.value) is (fault is not None)
    assert check.passed is (fault is None)


@pytest.mark.trt
def test_a_video_is_one_launch_without_a_race(fused: Bundle) -> None:
    report = counts(fused, schedule_of(SAMPLERS["unipc"]))
    assert report.graph_launches == 1
    assert report.allocations_in_loop == report.host_syncs_in_loop == report.races == 0
    nodes = sum(len(region.nodes) for region in fused.manifest.regions.values())
    assert report.enqueues_by_kind["region"] == 3 * nodes


@pytest.mark.trt
def test_what_regions_write_is_what_engines_read(fused: Bundle) -> None:
    """The same bytes, whatever either calls them."""
    bits = {"uint8": 8, "float4_e2m1fn": 4, "float8_e4m3fn": 8, "bfloat16": 16, "float32": 32}
    regions = fused.manifest.regions.values()
    written = {spec.name: spec for region in regions for spec in region.outputs}
    read = 0
    for engine in fused.manifest.engines.values():
        for spec in engine.inputs:
            if spec.name in written:
                sizes = [
                    packed_bytes(_elements(each.shape), bits[each.dtype])
                    for each in (spec, written[spec.name])
                ]
                assert sizes[0] == sizes[1], spec.name
                read += 1
    assert read >= len(regions)


@pytest.mark.trt
def test_the_onnx_files_are_the_same(fused: Bundle, tiny_bundle: Path) -> None:
    names = [name for name in fused.manifest.files if name.startswith(f"{ONNX_FOLDER}/")]
    assert f"{ONNX_FOLDER}/dit.onnx" in names
    before = open_bundle(tiny_bundle).manifest.files
    assert {n: fused.manifest.files[n].sha256 for n in names} == {
        n: before[n].sha256 for n in names
    }


def _elements(shape: tuple[int | str, ...]) -> int:
    product = 1
    for size in shape:
        product *= int(size)
    return product


def sources_of(bundle: Path, fusion: Fusion, *, attention: str, plugins: bool) -> int:
    """Number of sources that a fusion is planned to."""
    manifest = open_bundle(bundle).manifest
    return len(
        plan_sources(
            bundle / ONNX_FOLDER, manifest.onnx, attention=find_attention(attention),
            plugins=plugins, components=("dit",), fusion=fusion,
        )[0]
    )  # fmt: skip


@pytest.mark.trt
@pytest.mark.parametrize(
    ("attention", "plugins", "cut"),
    [("sage3", False, True), ("sage3", True, False), ("native", False, False)],
)
def test_a_fusion_needs_engines_that_are_divided_there(
    tiny_bundle: Path, attention: str, plugins: bool, cut: bool
) -> None:
    lifted = find_fusion("gelu")
    assert sources_of(tiny_bundle, NONE, attention=attention, plugins=plugins) >= 3
    if cut:
        assert sources_of(tiny_bundle, lifted, attention=attention, plugins=plugins) > 5
        return
    with pytest.raises(BadInput, match="an engine cannot hold the node GeluQuantize"):
        sources_of(tiny_bundle, lifted, attention=attention, plugins=plugins)


@pytest.mark.trt
def test_a_fusion_without_anything_to_lift_is_refused(tiny_bundle: Path) -> None:
    def idle(model: object) -> tuple[object, bool]:
        return model, False

    with pytest.raises(BadInput, match="nothing for idle to lift"):
        sources_of(
            tiny_bundle,
            Fusion("idle", (idle,)),
            attention="sage3",
            plugins=False,  # type: ignore[arg-type]
        )


@pytest.mark.trt
def test_every_constant_of_a_region_is_in_the_bundle(fused: Bundle) -> None:
    specs = {s.name: s for region in fused.manifest.regions.values() for s in region.constants}
    found = dict(initializers(fused, list(specs)))
    assert {name: len(content) for name, content in found.items()} == {
        name: allocate(spec).size for name, spec in specs.items()
    }
    assert found
