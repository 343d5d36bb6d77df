"""Recipes of linears, one a file, and the table of them.

To add one: a file beside `nvfp4.py`, its object in `IMPLEMENTED`, its name in
`fastwan.config.RECIPES` and in the rows of the targets that have its GEMM.
"""

from __future__ import annotations

from fastwan.config import RECIPES
from fastwan.export.recipes.base import Fault, Gate, Kernel, Recipe
from fastwan.export.recipes.bf16 import BF16
from fastwan.export.recipes.fp8 import FP8
from fastwan.export.recipes.nvfp4 import NVFP4
from fastwan.tables import implementation

IMPLEMENTED: dict[str, Recipe] = {recipe.name: recipe for recipe in (NVFP4(), FP8(), BF16())}

__all__ = ["BF16", "FP8", "IMPLEMENTED", "NVFP4", "Fault", "Gate", "Kernel", "Recipe", "find_recipe"]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        BadInput: no name of the tables, or one that nothing implements.
    """
    return implementation(RECIPES, IMPLEMENTED, name, "recipe")
