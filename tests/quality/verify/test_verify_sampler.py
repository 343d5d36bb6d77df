"""Constants of samplers against the published ones, without a bundle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fastwan.config import SAMPLERS
from fastwan.quality.verify import sampler
from fastwan.quality.verify.sampler import LIMIT, PUBLISHED, difference


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("field", ["timestep", "sigma", "initial", "prediction", "noise"])
def test_each_constant_of_each_published_step_is_compared(
    monkeypatch: pytest.MonkeyPatch, name: str, row: int, field: str
) -> None:
    assert difference(SAMPLERS[name]) <= LIMIT
    rows = list(PUBLISHED[name])
    rows[row] = rows[row]._replace(**{field: getattr(rows[row], field) + 1})
    monkeypatch.setitem(sampler.PUBLISHED, name, tuple(rows))
    assert difference(SAMPLERS[name]) > LIMIT


@pytest.mark.parametrize("published", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["sigma", "prediction"])
def test_a_difference_that_is_no_number_is_not_small(
    monkeypatch: pytest.MonkeyPatch, published: float, field: str
) -> None:
    assert difference(SAMPLERS["unipc"]) <= LIMIT
    rows = PUBLISHED["unipc"]
    wrong = (*rows[:2], rows[2]._replace(**{field: published}))
    monkeypatch.setitem(sampler.PUBLISHED, "unipc", wrong)
    assert difference(SAMPLERS["unipc"]) == math.inf


@pytest.mark.parametrize(
    "change", [{"name": "own"}, {"guidance": 5.0}, {"kind": "other"}, {"steps": 4}]
)
def test_a_sampler_that_nothing_was_published_of_is_infinitely_far(
    change: dict[str, object],
) -> None:
    spec = SAMPLERS["unipc"]
    assert difference(spec) <= LIMIT
    assert difference(replace(spec, **change)) == math.inf  # type: ignore[arg-type]
