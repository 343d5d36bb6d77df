"""Checks that only one recipe's transformer calls for, by the class of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastwan.export.recipes import FP8, NVFP4, Recipe
from fastwan.quality.verify import fp8
from fastwan.quality.verify.packing import check_packing
from fastwan.quality.verify.quantizer import check_quantizer, check_recipe, lowered_parts
from fastwan.quality.verify.report import Planned
from fastwan.quality.verify.subject import Subject


def recipe_checks(subject: Subject) -> list[Planned]:
    """Those of the transformer's recipe, beside what `verify` holds every recipe to."""
    plan = PLANS.get(type(subject.recipe))
    return [] if plan is None else plan(subject)


def _nvfp4(subject: Subject) -> list[Planned]:
    recipe = subject.recipe
    assert isinstance(recipe, NVFP4)
    return [
        Planned(("packing_bit_exact",), lambda: (check_packing(subject),)),
        Planned(("quantizer_recipe",), lambda: (check_recipe(subject, recipe),)),
        Planned(
            ("quantizer_bit_exact",),
            lambda: (check_quantizer(subject, recipe, lowered_parts(subject)),),
        ),
    ]


def _fp8(subject: Subject) -> list[Planned]:
    recipe = subject.recipe
    assert isinstance(recipe, FP8)
    return [
        Planned(("packing_bit_exact",), lambda: (fp8.check_packing(subject),)),
        Planned(("quantizer_recipe",), lambda: (fp8.check_recipe(subject),)),
        Planned(
            ("quantizer_bit_exact",),
            lambda: (fp8.check_quantizer(subject, recipe, lowered_parts(subject)),),
        ),
    ]


PLANS: Mapping[type[Recipe], Callable[[Subject], list[Planned]]] = {NVFP4: _nvfp4, FP8: _fp8}
