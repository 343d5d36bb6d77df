"""Weights given to engines: one plan for every GEMM of a shape, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastwan.bundle import Bundle, open_bundle
from fastwan.config import SAMPLERS
from fastwan.engines.build import ONNX_FOLDER
from fastwan.engines.plan import DATA, INLINE, default_weights, plan_dit
from fastwan.errors import BadInput, VerificationFailed
from fastwan.export.attentions import find_attention
from fastwan.export.passes.bare_gemm import SCALED
from fastwan.export.passes.fusions import IMPLEMENTED, find_fusion
from fastwan.export.recipes import BF16, NVFP4
from fastwan.manifest import MANIFEST
from fastwan.quality.bench import counts
from fastwan.quality.report import inspect_bundle
from fastwan.quality.verify.engine_plan import check_engine_plan
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.constants import initializers
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.tensors import allocate

pytestmark = pytest.mark.trt


@pytest.fixture(scope="module")
def data(data_bundle: Path) -> Bundle:
    return open_bundle(data_bundle)


@pytest.fixture(scope="module")
def inline(lifted_bundle: Path) -> Bundle:
    return open_bundle(lifted_bundle)


def given(bundle: Bundle) -> dict[str, Any]:
    """Engines that are given weights, by name."""
    return {name: each for name, each in bundle.manifest.engines.items() if each.constants}


def test_a_plan_serves_every_gemm_of_its_shape(data: Bundle) -> None:
    engines = given(data)
    users = Counter(engine.file for engine in engines.values())
    shapes = {
        name: tuple(spec.shape for spec in (*engine.inputs, *engine.constants, *engine.outputs))
        for name, engine in engines.items()
    }
    assert len(users) == len(set(shapes.values())) < len(engines)
    assert {tuple(sorted(engine.bindings.values())) for engine in engines.values()} == {
        ("codes", "scales", "weight", "weight_scale", "y")
    }


def test_a_plan_holds_no_weight(data: Bundle, inline: Bundle) -> None:
    def held(bundle: Bundle, name: str, content: bytes) -> bool:
        return content[:256] in bundle.read(bundle.manifest.engines[name].file)

    engines = given(data)
    names = {engine.constants[0].name: name for name, engine in engines.items()}
    for weight, content in initializers(data, list(names)):
        assert not held(data, names[weight], content)
        assert held(inline, names[weight], content)


def test_no_linear_loses_fp4(data: Bundle, inline: Bundle) -> None:
    linears = 10 * data.manifest.onnx.model.dit.num_layers
    for bundle in (data, inline):
        part = inspect_bundle(bundle).components["dit"]
        assert part.linears == part.quantised_linears == linears
    assert inspect_bundle(data).bundle.weights == DATA
    assert inspect_bundle(inline).bundle.weights == INLINE


def test_it_costs_two_kernels_a_gemm(data: Bundle, inline: Bundle) -> None:
    found = {
        name: len([record for record in records if record["kind"] != "host"])
        for name, records in data.layers.items()
    }
    before = {name: len(inline.layers[name]) for name in found}
    assert {name: found[name] - before[name] for name in found} == {
        name: 2 if name in given(data) else 0 for name in found
    }


def test_a_video_is_one_launch_without_a_race(data: Bundle, inline: Bundle) -> None:
    reports = [counts(bundle, schedule_of(SAMPLERS["unipc"])) for bundle in (data, inline)]
    for report in reports:
        assert report.graph_launches == 1
        assert report.allocations_in_loop == report.host_syncs_in_loop == report.races == 0
    assert reports[0].enqueues_by_kind == reports[1].enqueues_by_kind


def test_weights_are_fixed_memory_and_plans_count_once(data: Bundle, inline: Bundle) -> None:
    sizes = {s.name: allocate(s).size for each in given(data).values() for s in each.constants}
    before, after = (inspect_bundle(bundle).device_bytes for bundle in (inline, data))
    assert before is not None
    assert after is not None
    assert after.fixed - before.fixed >= sum(sizes.values()) > 0
    files = {engine.file for engine in data.manifest.engines.values()}
    assert after.weights == sum(data.manifest.files[name].bytes for name in files)
    weights = [inspect_bundle(each).components["dit"].weight_bytes for each in (inline, data)]
    assert weights[0] == pytest.approx(weights[1], rel=0.01)


def test_every_given_weight_is_in_the_data_file(data: Bundle) -> None:
    sizes = {s.name: allocate(s).size for each in given(data).values() for s in each.constants}
    assert {n: len(content) for n, content in initializers(data, list(sizes))} == sizes


def test_the_onnx_files_are_those_of_inline_weights(data: Bundle, inline: Bundle) -> None:
    def onnx(bundle: Bundle) -> dict[str, str]:
        files = bundle.manifest.files.items()
        return {n: each.sha256 for n, each in files if n.startswith(f"{ONNX_FOLDER}/")}

    assert onnx(data) == onnx(inline)
    assert f"{ONNX_FOLDER}/dit.data" in onnx(data)


def test_what_reads_a_product_has_its_scale(data: Bundle) -> None:
    scaled = 0
    for region in data.manifest.regions.values():
        fixed = {spec.name for spec in region.constants}
        for node in region.nodes:
            if node.attributes.get(SCALED):
                assert node.inputs[-1].endswith(".weight_scale_2")
                assert node.inputs[-1] in fixed
                scaled += 1
    # The merged query, key and value have the attention apply theirs.
    merged = sum(each.linears[0].name.endswith(".qkv") for each in given(data).values())
    assert scaled == len(given(data)) - merged > 0


@pytest.mark.parametrize("name", list(IMPLEMENTED))
def test_the_default_is_data_where_gemms_stand_alone(name: str) -> None:
    assert default_weights(find_fusion(name), NVFP4()) == (DATA if name == "all" else INLINE)
    assert default_weights(find_fusion(name), BF16()) == INLINE


@pytest.mark.parametrize("fusion", ["none", "gelu", "all"])
def test_weights_cannot_be_data_where_no_gemm_stands_alone(tiny_bundle: Path, fusion: str) -> None:
    subject = Subject(open_bundle(tiny_bundle))
    linears = [each for graph in ("text_kv", "dit") for each in subject.graph(graph).linears]

    def plan(weights: str) -> int:
        parts = plan_dit(
            subject.stored, linears, attention=find_attention("sage3"), plugins=False,
            fusion=find_fusion(fusion), weights=weights,
        ).parts  # fmt: skip
        return sum(part.gemm is not None for part in parts)

    assert plan(INLINE) == 0
    if fusion == "all":
        assert plan(DATA) > 5
        return
    with pytest.raises(BadInput, match=r"no linear of a step is alone in its engine.*--fusion all"):
        plan(DATA)


@pytest.mark.parametrize("gives", [True, False])
def test_a_recipe_that_gives_no_weights_is_not_sent_to_a_fusion(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, gives: bool
) -> None:
    monkeypatch.setattr(NVFP4, "gives_weights", gives)
    subject = Subject(open_bundle(tiny_bundle))
    linears = [each for graph in ("text_kv", "dit") for each in subject.graph(graph).linears]
    with pytest.raises(BadInput, match=r"--weights inline$") as refused:
        plan_dit(
            subject.stored, linears, attention=find_attention("sage3"), plugins=False, weights=DATA
        )
    assert ("--fusion all" in str(refused.value)) == gives


def swapped(bundle: Bundle, *names: str) -> Bundle:
    """The bundle with linears and weights of two engines exchanged."""
    first, second = (bundle.manifest.engines[name] for name in names)

    def with_weights(engine: Any, other: Any) -> Any:
        ours = {engine.bindings[spec.name]: spec.name for spec in engine.constants}
        theirs = {other.bindings[spec.name]: spec.name for spec in other.constants}
        renamed = {ours[role]: theirs[role] for role in ours}
        bindings = {renamed.get(n, n): role for n, role in engine.bindings.items()}
        update = {"constants": other.constants, "bindings": bindings}
        return engine.model_copy(update=update)

    engines = bundle.manifest.engines | {
        names[0]: with_weights(first, second), names[1]: with_weights(second, first),
    }  # fmt: skip
    return Bundle(bundle.root, bundle.manifest.model_copy(update={"engines": engines}))


def test_the_weight_of_another_block_fails_engine_plan(data: Bundle) -> None:
    by_linear = {each.linears[0].name: name for name, each in given(data).items()}
    pair = [by_linear[f"blocks.{block}.ffn.fc1"] for block in (0, 1)]
    assert check_engine_plan(Subject(data)).passed
    check = check_engine_plan(Subject(swapped(data, *pair)))
    assert check.value == 2.0


@pytest.fixture
def copied(data_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(data_bundle, folder)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / MANIFEST
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def of_shapes(engines: dict[str, Any]) -> list[list[str]]:
    """Names of engines that are given weights, by plan."""
    plans: dict[str, list[str]] = {}
    for name, engine in engines.items():
        if engine.get("constants"):
            plans.setdefault(engine["file"], []).append(name)
    return list(plans.values())


def another_shapes_plan(fields: dict[str, Any]) -> None:
    (first, *_), (second, *_), *_ = of_shapes(fields["engines"])
    fields["engines"][first]["file"] = fields["engines"][second]["file"]


def another_blocks_weight(fields: dict[str, Any]) -> None:
    engines = fields["engines"]
    first, second = next(names for names in of_shapes(engines) if len(names) > 1)[:2]
    for key in ("constants", "bindings"):
        engines[first][key] = (
            engines[second][key] | {} if key == "bindings" else engines[second][key]
        )
    names = {spec["name"] for key in ("inputs", "outputs") for spec in engines[first][key]}
    old = engines[second]["bindings"]
    given = {spec["name"] for spec in engines[second]["constants"]}
    ours = {"codes", "scales", "y"}
    roles = dict(zip(sorted(names), sorted(ours), strict=True))
    engines[first]["bindings"] = {n: old[n] for n in given} | roles


def scales_swapped(fields: dict[str, Any]) -> None:
    """Codes of the activation and those of the weight change places in the plan."""
    engines = fields["engines"]
    name = next(names for names in of_shapes(engines) if len(names) > 1)[0]
    roles = {role: tensor for tensor, role in engines[name]["bindings"].items()}
    exchanged = {"scales": "weight_scale", "weight_scale": "scales"}
    engines[name]["bindings"] = {t: exchanged.get(r, r) for r, t in roles.items()}


def a_tensor_unbound(fields: dict[str, Any]) -> None:
    engines = fields["engines"]
    engines[of_shapes(engines)[0][0]]["bindings"].popitem()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (another_shapes_plan, "share a plan and no shapes"),
        (another_blocks_weight, "of no linear that it covers"),
        (scales_swapped, "share a plan and no shapes"),
        (a_tensor_unbound, "bindings do not name each tensor"),
    ],
)
def test_a_manifest_that_gives_an_engine_something_else_is_refused(
    copied: Path, fault: Callable[[dict[str, Any]], object], message: str
) -> None:
    open_bundle(copied)
    rewrite(copied, fault)
    with pytest.raises(BadInput, match=message):
        open_bundle(copied)


def test_a_damaged_data_file_is_seen_before_a_video(copied: Path) -> None:
    schedule = schedule_of(SAMPLERS["unipc"])
    assert counts(open_bundle(copied), schedule).races == 0
    path = copied / ONNX_FOLDER / "dit.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationFailed, match="differs from its hash"):
        counts(open_bundle(copied), schedule)
