"""The tables of names and of objects: they agree, and nothing else asks for a name."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fastwan.config import ATTENTIONS, BACKENDS, MODELS, RECIPES, TARGETS, DiTConfig
from fastwan.engines.backend import load_backend
from fastwan.errors import BadInput
from fastwan.export.attentions import IMPLEMENTED as ATTENTION_OBJECTS
from fastwan.export.recipes import IMPLEMENTED as RECIPE_OBJECTS
from fastwan.manifest import ONNX_MANIFEST, OnnxManifest
from fastwan.manifest_reader import parse_manifest
from testkit.manifests import exported_of

FOLDERS = ("engines", "export", "plugins", "runtime", "src", "scripts")
OWN = ("export/recipes/", "export/attentions/", "src/fastwan/config.py")
"""Where names of recipes and attentions may be told apart."""


def test_every_name_is_implemented_and_every_object_is_named() -> None:
    assert set(RECIPES) == set(RECIPE_OBJECTS)
    assert set(ATTENTIONS) == set(ATTENTION_OBJECTS)
    for table in (RECIPE_OBJECTS, ATTENTION_OBJECTS):
        assert [each.name for each in table.values()] == list(table)
    assert [load_backend(name).name for name in BACKENDS] == list(BACKENDS)


def test_rows_of_models_and_targets_name_what_there_is() -> None:
    for target in TARGETS.values():
        assert {*target.recipes} <= {*RECIPES}
        assert {*target.attentions} <= {*ATTENTIONS}
        assert {*target.backends} <= {*BACKENDS}
    for model in MODELS.values():
        assert model.targets
        for name in model.targets:
            assert model.recipe in TARGETS[name].recipes
            assert model.attention in TARGETS[name].attentions


def branches(source: str) -> Iterator[str]:
    """Comparisons and cases of a file that tell a recipe or an attention apart by its name."""
    names = {*RECIPES, *ATTENTIONS}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Compare, ast.MatchValue)):
            found = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
            if found & names:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_branch_on_a_name(root: Path, tracked: list[Path]) -> None:
    found, checked = {}, 0
    for file in tracked:
        name = file.as_posix()
        if file.suffix != ".py" or file.parts[0] not in FOLDERS or name.startswith(OWN):
            continue
        checked += 1
        if lines := list(branches((root / file).read_text())):
            found[name] = lines
    assert found == {}
    assert checked > 100


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ('if recipe == "nvfp4": pass', 'if recipe == "name": pass'),
        ('x = 1 if attention != "sage3" else 2', "x = 1 if attention.quantised else 2"),
        ('if format in ("bf16", "nvfp4"): pass', 'for format in ("bf16", "nvfp4"): pass'),
        ('match name:\n    case "native": pass', "match name:\n    case _: pass"),
    ],
)
def test_a_branch_on_a_name_is_seen(bad: str, good: str) -> None:
    assert list(branches(bad))
    assert not list(branches(good))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 2}, ""),
        ({"num_layers": 0}, "num_layers is not within 1"),
        ({"num_layers": 2.5}, "valid integer.* in 'model.dit.num_layers'"),
        ({"num_layers": None}, "num_layers is missing in 'model.dit'"),
        ({"depth": 2}, "Unexpected keyword argument in 'model.dit.depth'"),
    ],
)
def test_a_manifest_holds_the_configurations_themselves(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / ONNX_MANIFEST
    dit = asdict(DiTConfig()) | changes
    written = {name: value for name, value in dit.items() if value is not None}
    exported = exported_of().model_dump(mode="json")
    exported["model"]["dit"] = written
    path.write_text(json.dumps(exported))
    if message:
        with pytest.raises(BadInput, match=rf"{ONNX_MANIFEST}: .*{message}"):
            parse_manifest(path, OnnxManifest)
    else:
        model = parse_manifest(path, OnnxManifest).model
        assert model.dit == DiTConfig(num_layers=2)
        assert json.loads(model.model_dump_json())["dit"]["patch_size"] == [1, 2, 2]
