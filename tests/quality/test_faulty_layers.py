"""Layer records with faults in them, under a right hash: refused in one line by every consumer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastwan.bundle import Bundle, open_bundle
from fastwan.cli import main
from fastwan.errors import BadInput
from fastwan.files import sha256_file
from fastwan.manifest import LAYERS, MANIFEST
from fastwan.quality.report import inspect_bundle

pytestmark = pytest.mark.usefixtures("constants")


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def good_layers(bundle: Bundle) -> str:
    return (bundle.root / LAYERS).read_text()


def rewrite(bundle: Bundle, content: str) -> None:
    """Replace the layer records and bring their hash up to date."""
    path, manifest = bundle.root / LAYERS, bundle.root / MANIFEST
    path.write_text(content)
    fields = json.loads(manifest.read_text())
    fields["files"][LAYERS] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(fields))


def first_gemm(layers: dict[str, Any]) -> dict[str, Any]:
    return next(record for record in layers["segment_00"] if record["kind"] == "gemm")


def shape_of(layers: dict[str, Any], shape: object) -> None:
    first_gemm(layers)["outputs"][0]["shape"] = shape


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an engine is missing": lambda layers: layers.pop("segment_00"),
    "no list": lambda layers: layers.update(segment_00={}),
    "no objects": lambda layers: layers.update(segment_00=[1]),
    "a missing field": lambda layers: first_gemm(layers).pop("tactic"),
    "an unknown field": lambda layers: first_gemm(layers).update(surprise=1),
    "a name that is a number": lambda layers: first_gemm(layers).update(name=1),
    "nodes that are a text": lambda layers: first_gemm(layers).update(nodes="a/MatMul"),
    "a negative profile": lambda layers: first_gemm(layers).update(profile=-1),
    "a profile that the engine lacks": lambda layers: first_gemm(layers).update(profile=1),
    "a profile in quotes": lambda layers: first_gemm(layers).update(profile="0"),
    "a size in quotes": lambda layers: shape_of(layers, [1, "128", 256]),
    "a size with a fraction": lambda layers: shape_of(layers, [1, 128.5, 256]),
    "a size that is true": lambda layers: shape_of(layers, [True, 128, 256]),
    "a size of -2": lambda layers: shape_of(layers, [1, -2, 256]),
    "a size of 400 digits": lambda layers: shape_of(layers, [1, int("9" * 400), 256]),
    "a size of 33 bits": lambda layers: shape_of(layers, [1, 1 << 32, 256]),
    "more elements than a GPU holds": lambda layers: shape_of(layers, [1, 1 << 30, 1 << 30]),
    "many axes": lambda layers: shape_of(layers, [1] * 100),
    "an unknown dtype": lambda layers: first_gemm(layers)["outputs"][0].update(dtype="Posit8"),
    "tensors that are none": lambda layers: first_gemm(layers).update(inputs=None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_records_is_refused_in_one_line(bundle: Bundle, fault: str) -> None:
    layers = json.loads((bundle.root / LAYERS).read_text())
    rewrite(bundle, json.dumps(layers))
    commands = (["inspect", str(bundle.root)], ["bench", "--device", "null", str(bundle.root)])
    assert [CliRunner().invoke(main, command).exit_code for command in commands] == [0, 0]
    FAULTS[fault](layers)
    rewrite(bundle, json.dumps(layers))
    for command in commands:
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "content",
    ["", "not JSON", "[]", "1", '{"segment_00": NaN}', "[" * 200_000, '{"a": [], "a": []}'],
    ids=["empty", "text", "list", "number", "NaN", "deep", "double key"],
)
def test_records_that_are_no_strict_json_are_refused(bundle: Bundle, content: str) -> None:
    rewrite(bundle, content)
    with pytest.raises(BadInput):
        inspect_bundle(open_bundle(bundle.root))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.sampled_from(
        [-1, 0, 1, 2, 128, "gemm", "correlation", "a_mha_", "FP8", "Float", "FP4E2M1"]
    )
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(data=st.data())
@settings(
    max_examples=150, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_no_records_make_anything_but_an_error_of_input(
    bundle: Bundle, good_layers: str, data: st.DataObject
) -> None:
    layers = json.loads(good_layers)
    holder: Any = layers
    for _ in range(data.draw(st.integers(1, 4))):
        keys = range(len(holder)) if isinstance(holder, list) else sorted(holder)
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(holder[key], list | dict) or not holder[key]:
            break
        holder, last = holder[key], (holder, key)
    else:
        holder, key = last
    holder[key] = data.draw(VALUES)
    rewrite(bundle, json.dumps(layers))
    with contextlib.suppress(BadInput):
        inspect_bundle(open_bundle(bundle.root))
