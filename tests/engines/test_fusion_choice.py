"""Which fusion a build takes where nobody says one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.config import FUSIONS
from fastwan.engines.build import ONNX_FOLDER
from fastwan.engines.plan import choose_fusion
from fastwan.export.attentions import find_attention
from fastwan.export.passes import fusions
from fastwan.export.passes.fusions import Fusion, fastest_fusion

pytestmark = pytest.mark.trt


@pytest.mark.parametrize(
    ("attention", "plugins", "name"),
    [("sage3", False, "all"), ("sage3", True, "none"), ("native", False, "none")],
)
def test_the_fastest_that_can_be_divided(
    tiny_bundle: Path, attention: str, plugins: bool, name: str
) -> None:
    exported = open_bundle(tiny_bundle).manifest.onnx
    chosen = choose_fusion(
        tiny_bundle / ONNX_FOLDER, exported, attention=find_attention(attention), plugins=plugins
    )
    assert chosen.name == name
    bare = exported.model_copy(update={"graphs": {}})
    without = choose_fusion(
        tiny_bundle / ONNX_FOLDER, bare, attention=find_attention(attention), plugins=plugins
    )
    assert without.name == "none"


def test_a_transformer_without_the_patterns_takes_the_next(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ir.load(tiny_bundle / ONNX_FOLDER / "dit.onnx")
    attention = find_attention("sage3")
    assert fastest_fusion(model, attention, plugins=False).name == "all"
    nodes = len(list(model.graph))

    def nothing(model: ir.Model) -> tuple[ir.Model, bool]:
        return model, False

    table = {**fusions.IMPLEMENTED, "all": Fusion("all", (nothing,))}
    monkeypatch.setattr(fusions, "IMPLEMENTED", table)
    assert fastest_fusion(model, attention, plugins=False).name == "gelu+cross"
    assert len(list(model.graph)) == nodes


def test_the_table_ends_with_the_fastest() -> None:
    assert list(fusions.IMPLEMENTED) == list(FUSIONS)
    assert (next(iter(FUSIONS)), list(FUSIONS)[-1]) == ("none", "all")


def test_the_default_is_in_the_help() -> None:
    option: Any = next(
        each for each in main.commands["build-engine"].params if each.name == "fusion"
    )
    assert option.default == "auto"
    assert list(option.type.choices) == ["auto", *FUSIONS]
