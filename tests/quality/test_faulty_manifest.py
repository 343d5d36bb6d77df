"""Manifests with a number out of bounds or of another type: refused in one line, at opening."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastwan.bundle import Bundle, open_bundle
from fastwan.errors import BadInput
from fastwan.manifest import MANIFEST, Manifest
from fastwan.manifest_reader import parse_manifest
from fastwan.quality.report import inspect_bundle

HUGE = int("9" * 60)
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def good(bundle: Bundle) -> str:
    return (bundle.root / MANIFEST).read_text()


def put(place: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of one field; a place is names and indices with dots between them."""

    def change(fields: Any) -> None:
        *way, last = (int(part) if part.isdigit() else part for part in place.split("/"))
        for part in way:
            fields = fields[part]
        assert isinstance(fields, list) or last in fields
        fields[last] = value

    return change


SCRATCH, SECONDS = "engines/segment_00/scratch_bytes", "build/seconds"
AXIS = "engines/segment_00/inputs/0/shape/2"
PROFILES = "engines/text_encoder/profiles/embeddings"
FAULTS = [
    *((SCRATCH, value) for value in (-1, HUGE, 1 << 45, "1024", True, 1.5, None, NAN)),
    *((SECONDS, value) for value in (-1.0, NAN, INFINITE, "nan", "1.5", 1e30, None, [])),
    *(("build/peak_rss_bytes", value) for value in (-1, HUGE, "10")),
    *(("build/stages", value) for value in ({"export": -1.0}, {"export": "inf"}, [])),
    *((AXIS, value) for value in (0, -1, HUGE, 1 << 31, 2.5, True, None)),
    ("engines/segment_00/inputs/0/shape", [1 << 30, 1 << 30]),
    ("engines/segment_00/inputs/0/shape", [1] * 17),
    (f"{PROFILES}/0/0/1", 0),
    (f"{PROFILES}/0/0/1", 65),
    (f"{PROFILES}/0/2/1", 63),
    (f"{PROFILES}/0/2/2", 9),
    (f"{PROFILES}/0/1/1", HUGE),
    (f"{PROFILES}/0/1", [1, 64]),
    (PROFILES, []),
    *((f"onnx/model/shape/{name}", value) for name in ("height", "width") for value in
      (0, -16, 16_000_000, 17, HUGE, "16", True)),
    *(("onnx/model/shape/num_frames", value) for value in (0, -3, 2, 1_000_001, HUGE, "9")),
    *((f"onnx/model/dit/{name}", value) for name in
      ("num_layers", "num_heads", "ffn_dim", "text_dim", "text_length", "freq_dim", "in_channels")
      for value in (0, -1, 1_000_000_000, HUGE, "2", True, 2.5)),
    *(("onnx/model/dit/eps", value) for value in (0, -1e-6, NAN, INFINITE, 1e-46, 1, "1e-6")),
    *(("files/layers.json/bytes", value) for value in (-1, HUGE, "7")),
    ("files/layers.json/sha256", "0" * 63),
    ("samplers", []),
    *(("samplers/0/shift", value) for value in (0, -3.0, NAN, INFINITE, "3", HUGE)),
    *(("samplers/0/steps", value) for value in (0, -1, 1_000_000_000, "3", True)),
    *(("samplers/0/guidance", value) for value in (0, NAN, -1)),
    ("samplers/1/timesteps", [1000, 757, -1]),
    ("samplers/1/timesteps", [1000, "757", 522]),
    ("components", []),
    ("engines", []),
    ("schema_version", "3"),
    ("regions/region_00/inputs/0/shape/1", 0),
    ("regions/region_00/nodes/0/attributes/num_tokens", HUGE),
    ("regions/region_00/nodes/0/attributes/eps", NAN),
    ("regions/region_00/nodes/0/attributes/eps", None),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), FAULTS)
def test_a_number_out_of_bounds_is_refused_at_opening(
    bundle: Bundle, good: str, place: str, value: object
) -> None:
    fields = json.loads(good)
    path = bundle.root / MANIFEST
    path.write_text(json.dumps(fields))
    assert open_bundle(bundle.root).manifest == bundle.manifest
    put(place, value)(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(BadInput) as caught:
        open_bundle(bundle.root)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


REGION_FAULTS = [
    *(("num_tokens", value) for value in (0, -1, 129, 1.5, "100")),
    *(("num_heads", value) for value in (0, -1, 3, "two", 2.0, 1 << 20)),
    *(("eps", value) for value in (0.0, -1e-6, 1e-46, 2.0, "small")),
    *(("softmax_scale", value) for value in (0.0, -0.1, 1e30, "x")),
    *(("exact_max", value) for value in (2, -1, 0.5)),
    ("surprise", 1),
]


@pytest.mark.parametrize(("name", "value"), REGION_FAULTS)
def test_an_attribute_of_a_region_has_bounds(
    bundle: Bundle, good: str, name: str, value: object
) -> None:
    inspect_bundle(bundle)
    fields = json.loads(good)
    fields["regions"]["region_00"]["nodes"][0]["attributes"][name] = value
    (bundle.root / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(BadInput):
        inspect_bundle(open_bundle(bundle.root))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "schema version"),
        ("[" * 200_000, "deeper|not valid JSON"),
        ('{"schema_version": 3, "schema_version": 3}', "given twice"),
        ('{"schema_version": NaN}', "NaN"),
        ('{"schema_version": ' + "3" * 400 + "}", "400 characters"),
    ],
    ids=["empty", "deep", "twice", "NaN", "400 digits"],
)
def test_a_manifest_that_is_no_strict_json_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / MANIFEST
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        parse_manifest(path, Manifest)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_not_read(bundle: Bundle, good: str, kind: str) -> None:
    path = bundle.root / MANIFEST
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(BadInput):
        open_bundle(bundle.root)
    path.rmdir() if kind == "folder" else path.unlink()
    path.write_text(good)
    assert open_bundle(bundle.root).manifest == bundle.manifest


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.sampled_from([-1, 0, 1, 2, 16, "length", "nvfp4", "float32", "step"])
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(data=st.data())
@settings(
    max_examples=150, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_no_manifest_makes_anything_but_an_error_of_input(
    bundle: Bundle, good: str, data: st.DataObject
) -> None:
    fields: Any = json.loads(good)
    holder = fields
    for _ in range(data.draw(st.integers(1, 7))):
        keys = list(range(len(holder)) if isinstance(holder, list) else sorted(holder))
        key = data.draw(st.sampled_from(keys))
        last, holder = (holder, key), holder[key]
        if not isinstance(holder, list | dict) or not holder:
            break
    last[0][last[1]] = data.draw(VALUES)
    path = bundle.root / MANIFEST
    path.write_text(json.dumps(fields))
    with contextlib.suppress(BadInput):
        parse_manifest(path, Manifest)
