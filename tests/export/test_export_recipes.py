"""What every recipe owes: its verbs, and a gate wherever a weight is changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwan.errors import VerificationFailed
from fastwan.export.attentions import IMPLEMENTED as ATTENTIONS
from fastwan.export.attentions import Attention
from fastwan.export.attentions.native import Native
from fastwan.export.models.layers import Linear
from fastwan.export.recipes import BF16, IMPLEMENTED, Recipe
from fastwan.export.weights import tensor_digest

BFLOAT16 = torch.bfloat16
RECIPES = [pytest.param(recipe, id=name) for name, recipe in IMPLEMENTED.items()]
LIGHT = """
import sys
import fastwan.engines.coverage, fastwan.engines.layers
from fastwan.export.recipes import IMPLEMENTED
assert any(recipe.gate for recipe in IMPLEMENTED.values())
print(*sorted({"torch", "onnx_ir", "modelopt", "onnxscript"} & set(sys.modules)))
"""


def weight(rows: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 64, generator=generator).mul(0.02).bfloat16()


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_stored_fits_the_buffers(recipe: Recipe) -> None:
    buffers = recipe.buffers(64, 48, BFLOAT16)
    stored = recipe.stored(weight(), BFLOAT16, reference=True)
    assert list(stored) == list(buffers)
    for name, tensor in stored.items():
        assert (tensor.shape, tensor.dtype) == (buffers[name].shape, buffers[name].dtype), name
    assert set(recipe.global_scales) < set(buffers)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_exporter_writes_what_the_reference_makes(recipe: Recipe) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    written, reference = (recipe.stored(weight(), BFLOAT16, reference=r) for r in (False, True))
    for name, tensor in written.items():
        assert tensor_digest(tensor) == tensor_digest(reference[name]), name


def _linear(recipe: Recipe, rows: int, stored: dict[str, Tensor]) -> Linear:
    linear = Linear(64, rows, recipe, torch.float32, bias=False)
    linear.load_state_dict(stored)
    linear.quantize_activation = False
    return linear


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_merged_weight_multiplies_like_its_parts(recipe: Recipe) -> None:
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    sizes = (16, 32, 48)
    parts = [recipe.stored(weight(n) * n, torch.float32, reference=True) for n in sizes]
    merged, factors = recipe.merge(parts)
    assert (factors.shape, factors.dtype) == ((3,), torch.float32)
    products = _linear(recipe, sum(sizes), merged)(x).split(sizes, dim=-1)
    for part, product, factor, rows in zip(parts, products, factors, sizes, strict=True):
        torch.testing.assert_close(product * factor, _linear(recipe, rows, part)(x))


@dataclass(frozen=True)
class Ungated(BF16):
    """Stores what `change` makes of a weight, and has no gate."""

    change: Callable[[Tensor], dict[str, Tensor]] = lambda weight: {"weight": weight}

    def convert(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        return self.change(weight)


CHANGES: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "nothing": lambda weight: {"weight": weight},
    "dtype": lambda weight: {"weight": weight.half()},
    "one value": lambda weight: {"weight": torch.where(weight == weight.max(), 0, weight)},
    "a scale": lambda weight: {"weight": weight, "weight_scale": torch.ones(())},
    "shape": lambda weight: {"weight": weight[:, ::2]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_recipe_that_changes_a_weight_needs_a_gate(change: str) -> None:
    recipe = Ungated(change=CHANGES[change])
    assert not recipe.quantised
    if change == "nothing":
        assert torch.equal(recipe.stored(weight(), BFLOAT16)["weight"], weight())
        return
    with pytest.raises(VerificationFailed, match="'bf16' changes a weight and has no gate") as made:
        recipe.stored(weight(), BFLOAT16)
    assert made.value.exit_code == 4


@pytest.mark.parametrize("verb", ["", *sorted(Recipe.__abstractmethods__)])
def test_a_recipe_without_a_verb_cannot_be_made(verb: str) -> None:
    _check_incomplete(Recipe, BF16, verb)


@pytest.mark.parametrize("verb", ["", *sorted(Attention.__abstractmethods__)])
def test_an_attention_without_a_verb_cannot_be_made(verb: str) -> None:
    _check_incomplete(Attention, Native, verb)


def _check_incomplete(base: type[Any], complete: type[Any], verb: str) -> None:
    """A class with all verbs of `complete` but one; with all of them where `verb` is empty."""
    verbs = {name: vars(complete)[name] for name in base.__abstractmethods__ if name != verb}
    kind = type("MadeUp", (base,), verbs)
    if verb:
        with pytest.raises(TypeError, match=rf"abstract.* '?{verb}\b"):
            kind("made up")
    else:
        assert kind("made up").name == "made up"


def test_every_attention_states_what_it_computes() -> None:
    for attention in ATTENTIONS.values():
        assert attention.reference.name
        assert isinstance(attention.uses_library, bool)
    assert {attention.quantised for attention in ATTENTIONS.values()} == {True, False}


def test_the_gates_load_neither_torch_nor_onnx_ir() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
