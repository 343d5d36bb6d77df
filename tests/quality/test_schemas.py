"""The published JSON schemas: those of the models, kept by every command, strict in every field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from fastwan.bundle import Bundle
from fastwan.cli import main
from fastwan.plugins.loader import checkout_root
from fastwan.quality.schemas import REPORTS, schema_files

Validate = Callable[[str, Any], None]
GIVEN = {
    "limit_bytes", "schema_version", "seed", "bundle.shape.height", "bundle.shape.width",
    "bundle.shape.num_frames", "rows.*.shape", "rows.*.tokens", "rows.*.padded_tokens", "steps",
    "built_shape", "prediction.published_step_ms", "prediction.published_video_ms",
    "videos.*.seed", "videos.*.height", "videos.*.width", "videos.*.fps",
    "measurement.compute_capability", "measurement.runs", "measurement.warmup",
}  # fmt: skip
"""Numbers that are no figures: what the caller or the model says."""


@pytest.fixture(scope="module")
def folder() -> Path:
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    return Path(root, "docs", "schema")


def test_the_published_schemas_are_those_of_the_models(folder: Path) -> None:
    published = {path.name: path.read_text() for path in folder.glob("*.json")}
    assert published == schema_files(), "run python -m fastwan.quality.schemas docs/schema"


def test_every_command_has_a_schema() -> None:
    commands = {name: each for name, each in main.commands.items() if name != "serve"}
    assert set(REPORTS) == set(commands), "a server answers by its OpenAPI document"
    assert all("--json" in command.params[-1].opts for command in commands.values())


def objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (each for each in (schema, *schema["$defs"].values()) if "properties" in each)


@pytest.mark.parametrize("command", REPORTS)
def test_no_object_of_a_schema_lets_a_field_come_or_go(command: str) -> None:
    schema = json.loads(schema_files()[f"{command}.json"])
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["kind"]["const"] == command
    assert schema["$id"].endswith(f"{command}:{schema['properties']['schema_version']['const']}")
    for each in objects({"$defs": {}, **schema}):
        assert sorted(each["required"]) == sorted(each["properties"])
        assert each["additionalProperties"] is False


@pytest.fixture
def outputs(
    make_bundle: Callable[..., Bundle], constants: None, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> dict[str, str]:  # fmt: skip
    """What the commands print that need neither a builder nor a graph."""
    bundle = make_bundle()
    path = str(bundle.root)
    other = str(shutil.copytree(bundle.root, tmp_path / "other"))
    library = tmp_path / "library.so"
    library.write_bytes(b"library")
    info = SimpleNamespace(build_info={"tensorrt": "none"})
    built = "fastwan.build_shapes.build_bundle_of_shapes"
    monkeypatch.setattr(built, lambda *_: bundle.manifest)
    monkeypatch.setattr("fastwan.swap.swap_weights", lambda *_: bundle.manifest)
    monkeypatch.setattr("fastwan.plugins.build.build_plugin", lambda *_, **__: library)
    monkeypatch.setattr("fastwan.plugins.loader.PluginLibrary", lambda *_, **__: info)
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    lines = {
        "make-checkpoint": ["--size", "tiny", "--no-text-encoder", str(tmp_path / "checkpoint")],
        "build-engine": ["--checkpoint", "owner/unused", "-o", path, "--force"],
        "swap-weights": [other, "--checkpoint", "owner/unused", "-o", path, "--force"],
        "inspect": [path],
        "plan": ["--model", "FastWan-QAD-FP8-1.3B", "--target", "rtx4090", "--shape", "832x480x1"],
        "bench": [path, "--device", "null"],
        "verify": [path],
        "gate": [
            path,
            "--stage",
            "schedule,predicted",
            "--update-baseline",
            "--against",
            str(tmp_path / "baseline.json"),
        ],
        "build-plugin": [],
        "comfyui": ["--install", str(tmp_path / "ComfyUI")],
        "export-triton": [path, "-o", str(tmp_path / "models")],
        "cache": ["ls"],
        "doctor": [],
    }
    printed = {}
    for command, arguments in lines.items():
        done = CliRunner().invoke(main, [command, *arguments, "--json"])
        assert done.exit_code == (4 if command == "verify" else 0), done.output
        printed[command] = done.stdout
    return printed


def test_commands_keep_to_their_schemas_and_a_lost_field_breaks_them(
    outputs: dict[str, str], validator: Callable[[str], Draft202012Validator]
) -> None:
    own = {"generate", "selftest", "goldens", "compare"}  # they have tests of their own
    assert set(outputs) == set(REPORTS) - own
    for command, text in outputs.items():
        check = validator(command)
        printed = json.loads(text)
        check.validate(printed)
        assert REPORTS[command].model_validate_json(text).to_json() == text.rstrip("\n")
        for field in printed:
            kept = {name: value for name, value in printed.items() if name != field}
            assert not check.is_valid(kept), f"{command} without {field}"
        assert not check.is_valid({**printed, "surprise": 1})


def leaves(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Places of the numbers in a report."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*place, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*place, str(index)))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield place


def within(place: tuple[str, ...], pattern: str) -> bool:
    """Whether a place is that of a pattern like ``components.*.bytes``, or below it."""
    parts = pattern.split(".")
    return len(parts) <= len(place) and all(
        part in ("*", name) for part, name in zip(parts, place, strict=False)
    )


def test_every_figure_has_one_label(outputs: dict[str, str]) -> None:
    checked = 0
    for command, text in outputs.items():
        printed = json.loads(text)
        labels = printed.get("labels", {})
        assert set(labels.values()) <= {"measured", "emulated", "predicted"}
        if command == "verify":  # each check has its own
            assert all(check["label"] in ("measured", "emulated") for check in printed["checks"])
            continue
        if command == "gate":
            found = {(each["stage"], each["label"]) for each in printed["findings"]}
            assert found == {("schedule", "measured"), ("predicted", "predicted")}
            continue
        for place in leaves({n: value for n, value in printed.items() if n != "labels"}):
            found = [pattern for pattern in labels if within(place, pattern)]
            given = any(within(place, pattern) for pattern in GIVEN)
            assert len(found) + given == 1, (command, place, found)
            checked += 1
    assert checked > 100
