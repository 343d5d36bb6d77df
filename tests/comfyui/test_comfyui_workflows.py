"""The shipped workflows: both forms say the same, and what they say of our nodes is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastwan.comfyui import install, nodes
from testkit.fake_comfyui import FakeComfyUI

FOLDER = Path(install.__file__).parent / "custom_node" / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def test_there_are_four_in_both_forms() -> None:
    assert len(NAMES) == 4
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == NAMES


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow as the page saves it, and as a prompt."""
    return (
        json.loads((FOLDER / f"{name}.json").read_text()),
        json.loads((FOLDER / "api" / f"{name}.json").read_text()),
    )


def linked(page: dict[str, Any]) -> set[tuple[str, str, str, int]]:
    """(node, input, source, output) of every link of a saved page."""
    nodes_by_id = {node["id"]: node for node in page["nodes"]}
    found = set()
    for _, source, output, target, slot, _ in page["links"]:
        name = nodes_by_id[target]["inputs"][slot]["name"]
        found.add((str(target), name, str(source), output))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_one_graph(name: str) -> None:
    page, prompt = read(name)
    assert {str(node["id"]): node["type"] for node in page["nodes"]} == {
        key: node["class_type"] for key, node in prompt.items()
    }
    links = {
        (key, entry, value[0], value[1])
        for key, node in prompt.items()
        for entry, value in node["inputs"].items()
        if isinstance(value, list)
    }
    assert links
    assert linked(page) == links


@pytest.mark.parametrize("name", NAMES)
def test_our_nodes_have_these_inputs(name: str, comfyui: FakeComfyUI) -> None:
    _, prompt = read(name)
    ours = [node for node in prompt.values() if node["class_type"] in nodes.NODE_CLASS_MAPPINGS]
    assert len(ours) >= 2
    for node in ours:
        inputs = nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        required, optional = inputs["required"], inputs.get("optional", {})
        assert required.keys() <= node["inputs"].keys() <= {*required, *optional}
        for entry, value in node["inputs"].items():
            rows = {**required, **optional}[entry][0]
            if isinstance(rows, list) and entry != "bundle":
                assert value in rows


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_machine_is_in_a_workflow(name: str) -> None:
    page, _ = read(name)
    assert page["id"] == name
    assert page["extra"] == {}
    assert "/tmp" not in json.dumps(page)
