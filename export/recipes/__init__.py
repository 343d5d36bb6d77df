"""Recipes of linears, one a file, and the table of them.

To add one: a file beside `nvfp4.py`, its object in `IMPLEMENTED`, its name in
`fastwan.config.RECIPES` and in the rows of the targets that have its GEMM.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastwan.config import RECIPES
from fastwan.export.recipes.base import Fault, Gate, Kernel, Recipe
from fastwan.export.recipes.bf16 import BF16
from fastwan.export.recipes.fp8 import FP8
from fastwan.export.recipes.nvfp4 import NVFP4
from fastwan.tables import implementation

IMPLEMENTED: dict[str, Recipe] = {recipe.name: recipe for recipe in (NVFP4(), FP8(), BF16())}

__all__ = [
    "BF16",
    "FP8",
    "IMPLEMENTED",
    "NVFP4",
    "Fault",
    "Gate",
    "Kernel",
    "Recipe",
    "find_recipe",
]


def find_recipe(
    name: str, activation: str | None = None, scales: Mapping[str, float] | None = None
) -> Recipe:
    """The recipe of that name.

    Args:
        activation: how it scales activations; the recipe's own default where None.
        scales: see `Recipe.with_activation`.

    Raises:
        BadInput: no name of the tables, or one that nothing implements, or the recipe leaves no
            choice of `activation`.
    """
    recipe = implementation(RECIPES, IMPLEMENTED, name, "recipe")
    return recipe if activation is None else recipe.with_activation(activation, scales or {})
