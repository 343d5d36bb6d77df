"""Manifests are read strictly: each thing that may be wrong with one is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.manifest import (
    MANIFEST,
    ONNX_MANIFEST,
    SCHEMA_VERSION,
    Manifest,
    OnnxManifest,
    ShapeParts,
)
from fastwan.manifest_reader import parse_manifest
from testkit.manifests import exported_of, manifest_of, write_exported, write_manifest

Change = Callable[[dict[str, Any]], object]


def changed(folder: Path, change: Change) -> Path:
    """Write a sound manifest, but for a change."""
    write_manifest(folder)
    path = folder / MANIFEST
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    return path


def refused(path: Path, message: str, **options: Any) -> BadInput:
    """The error of a manifest that is refused."""
    with pytest.raises(BadInput, match=message) as caught:
        parse_manifest(path, Manifest, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, tool_version="1.2")
    write_exported(tmp_path, {}, name="1.2")
    assert parse_manifest(tmp_path / MANIFEST, Manifest) == manifest_of(tool_version="1.2")
    assert parse_manifest(tmp_path / ONNX_MANIFEST, OnnxManifest) == exported_of(name="1.2")


def test_a_manifest_of_several_shapes_is_read_and_turned(tmp_path: Path) -> None:
    other = VideoShape(height=160, width=96, num_frames=9)
    part = ShapeParts(onnx=exported_of(shape=other), layers="other.json", engines={})
    write_manifest(tmp_path, shapes=(part,))
    read = parse_manifest(tmp_path / MANIFEST, Manifest)
    assert read.shapes == (part,)
    first = read.video_shapes[0]
    turned = read.at(other)
    assert turned.video_shapes == (other, first)
    assert (turned.layers, turned.onnx) == ("other.json", part.onnx)
    assert turned.at(first) == read
    with pytest.raises(BadInput, match=r"unknown shape .96x160x5.*160x96x9.*96x160x9"):
        read.at(VideoShape(height=160, width=96, num_frames=5))


def test_shapes_of_other_models_or_twice_the_same_are_refused(tmp_path: Path) -> None:
    shape = VideoShape(height=160, width=96, num_frames=9)
    part = ShapeParts(onnx=exported_of(shape=shape), engines={})
    assert manifest_of(shapes=(part,)).shapes == (part,)
    other = ShapeParts(onnx=exported_of(shape=shape, name="other"), engines={})
    for wrong, message in (((other,), "of another model"), ((part, part), "two shapes are 96x160")):
        with pytest.raises(ValueError, match=message):
            manifest_of(shapes=wrong)


def test_a_missing_manifest_is_told_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    missing = refused(tmp_path / MANIFEST, "manifest.json is missing")
    assert missing.where == str(tmp_path)
    assert "bundle's folder" in missing.fix
    (tmp_path / MANIFEST).mkdir()
    assert "missing" not in refused(tmp_path / MANIFEST, "manifest.json").what


@pytest.mark.parametrize("text", ['{"schema_version"', "[]", '{"a": 1, "a": 1}', "\xff"])
def test_what_is_not_strict_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    refused(tmp_path / MANIFEST, "manifest.json")


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1, "3", None])
def test_another_schema_version_is_named(tmp_path: Path, version: object) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["schema_version"] = version
        fields["a field of that version"] = 1

    said = refused(changed(tmp_path, change), rf"has schema version {version}, this tool reads \d+")
    assert said.where == str(tmp_path)
    assert "build the bundle again" in said.fix


def test_a_manifest_without_a_version_is_refused(tmp_path: Path) -> None:
    refused(changed(tmp_path, lambda fields: fields.pop("schema_version")), "schema version None")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.pop("engines"), "manifest.json: Field required in 'engines'"),
        (lambda fields: fields.update(colour="red"), "Extra inputs are not permitted in 'colour'"),
        (lambda fields: fields["build"].update(seconds="soon"), "valid number.* 'build.seconds'"),
        (lambda fields: fields["onnx"].pop("graphs"), "Field required in 'onnx.graphs'"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: Change, message: str) -> None:
    said = refused(changed(tmp_path, change), message)
    assert said.where == str(tmp_path)
    assert "build the bundle again" in said.fix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(target="rtx6090"), "manifest.json: unknown target 'rtx6090'"),
        (
            lambda fields: fields["onnx"]["model"]["dit"].update(num_layers=0),
            "manifest.json: .*num_layers is not within",
        ),
    ],
)
def test_a_name_or_a_configuration_in_it_is_refused_in_its_own_words(
    tmp_path: Path, change: Change, message: str
) -> None:
    assert refused(changed(tmp_path, change), message).where == str(tmp_path)


def test_messages_call_the_folder_what_the_caller_calls_it(tmp_path: Path) -> None:
    def wrong_version(fields: dict[str, Any]) -> None:
        fields["schema_version"] = 0

    def wrong_name(fields: dict[str, Any]) -> None:
        fields["target"] = "rtx6090"

    path = tmp_path / MANIFEST
    assert refused(path, "is missing", where="my bundle").where == "my bundle"
    path.write_text("{")
    assert refused(path, "JSON", where="my bundle").where == f"my bundle/{MANIFEST}"
    for change in (wrong_version, wrong_name, lambda fields: fields.pop("engines")):
        said = refused(changed(tmp_path, change), MANIFEST, where="my bundle")
        assert said.where == "my bundle"


def fallback(**changes: Any) -> dict[str, Any]:
    """Fields of a sound fallback, but for changes of its engine's tensors."""
    x, codes = ({"name": name, "dtype": "bfloat16", "shape": [1, 16]} for name in ("x", "codes"))
    engine = {"file": "f.engine", "component": "dit", "inputs": [x], "outputs": [codes]}
    return {
        "node": {"op": "Quantize", "inputs": ["x"], "outputs": ["codes"], "attributes": {}},
        "tensors": [x, codes],
        "graph": "f.onnx",
        "engine": {**engine, "scratch_bytes": 0, **changes},
    }


def test_a_fallback_is_read(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda fields: fields.update(fallbacks={"f": fallback()}))
    read = parse_manifest(path, Manifest)
    assert read.fallback_engines["f"].file == "f.engine"
    idle = changed(tmp_path, lambda fields: fields.update(fallbacks={"f": fallback(inputs=[])}))
    assert not parse_manifest(idle, Manifest).fallback_engines["f"].inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [{"name": "z", "dtype": "bfloat16", "shape": [1]}]}, "reads 'z', the node"),
        ({"outputs": []}, "does not write what the node does"),
    ],
)
def test_a_fallback_of_another_node_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    refused(
        changed(tmp_path, lambda fields: fields.update(fallbacks={"f": fallback(**changes)})),
        message,
    )


@pytest.mark.parametrize("name", ["f", "g"])
def test_a_fallback_has_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    engine = fallback()["engine"]
    path = changed(
        tmp_path, lambda fields: fields.update(engines={"f": engine}, fallbacks={name: fallback()})
    )
    if name == "g":
        assert parse_manifest(path, Manifest).fallbacks
    else:
        refused(path, "two engines have the name 'f'")


def test_a_manifest_without_fallbacks_is_read(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda fields: fields.pop("fallbacks"))
    assert parse_manifest(path, Manifest) == manifest_of()
