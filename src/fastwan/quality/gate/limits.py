"""How far a figure may be from its baseline: by a share of it and by an amount."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field

from fastwan.errors import BadInput
from fastwan.schema import Record

MAX_LIMIT = 10.0
"""Largest share beyond a baseline that can be asked for; more would let anything pass."""


class Limit(Record):
    """A figure may be worse by the larger of the two; both at 0 let nothing be worse."""

    relative: Annotated[float, Field(ge=0, le=MAX_LIMIT, allow_inf_nan=False)] = 0.0
    """Share of the baseline: 0.05 is 5 %."""
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """In the figure's own unit; keeps a small figure's noise from being 5 % of it."""

    def margin(self, baseline: float) -> float:
        """How much worse than `baseline` a figure may be."""
        return max(self.relative * abs(baseline), self.absolute)


EXACT = Limit()

DEFAULTS: Mapping[str, Limit] = {
    "static": EXACT,
    "schedule": EXACT,
    "predicted": Limit(relative=0.05, absolute=0.001),
    "times": Limit(relative=0.05, absolute=0.1),
    # On the host's clock, which a busy host moves: what waits for launches, and the whole.
    "times.text": Limit(relative=0.25, absolute=3.0),
    "times.text_kv": Limit(relative=0.25, absolute=3.0),
    "times.total": Limit(relative=0.05, absolute=5.0),
    "times.copy": Limit(relative=0.05, absolute=0.3),
    "times.loading": Limit(relative=0.25, absolute=500.0),
    "times.memory_peak_bytes": Limit(relative=0.02, absolute=16e6),
    "times.spread": Limit(relative=0.0, absolute=0.5),
    "times.clocks": Limit(relative=0.05, absolute=15.0),
}
"""By stage, or by stage and the first words of a check. Times are in milliseconds."""


def limit_of(limits: Mapping[str, Limit], stage: str, check: str) -> Limit:
    """The limit with the longest name of those that a check's name begins with.

    Args:
        limits: beside `DEFAULTS`, which they override name by name.
    """
    known = {**DEFAULTS, **limits}
    words = f"{stage}.{check}".split(".")
    names = (".".join(words[:count]) for count in range(len(words), 0, -1))
    return next((known[name] for name in names if name in known), EXACT)


def parse_limits(options: Iterable[str], stages: Iterable[str]) -> dict[str, Limit]:
    """Limits as the command line has them: ``STAGE[.CHECK]=RELATIVE[:ABSOLUTE]``.

    Args:
        stages: those that there are limits for.

    Raises:
        BadInput: of another form, a stage that there is not, or a number that decides nothing.
    """
    stages = tuple(stages)
    parsed: dict[str, Limit] = {}
    for option in options:
        name, equals, numbers = option.partition("=")
        relative, _, absolute = numbers.partition(":")
        if not equals or name.split(".")[0] not in stages:
            raise BadInput(
                f"no limit: {option!r}",
                where="--limit",
                fix=f"STAGE[.CHECK]=RELATIVE[:ABSOLUTE] with a stage of {', '.join(stages)}, "
                "e.g. times=0.05:0.2",
            )
        parsed[name] = Limit(
            relative=_number(relative, MAX_LIMIT), absolute=_number(absolute or "0", math.inf)
        )
    return parsed


def check_share(limit: float) -> None:
    """Refuse a share that no figure could pass, or that every figure would.

    Raises:
        BadInput: not a number within 0 .. `MAX_LIMIT`.
    """
    if not 0 <= limit <= MAX_LIMIT:
        raise BadInput(
            f"{limit:g} is not within 0 .. {MAX_LIMIT:g}",
            where="--limit",
            fix="a share of the baseline: 0.05 lets a figure be 5 % larger",
        )


def _number(text: str, largest: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 <= number <= largest and math.isfinite(number)):
        raise BadInput(
            f"{text[:40]!r} is not a number within 0 .. {largest:g}",
            where="--limit",
            fix="a share of the baseline, e.g. 0.05, and an amount, e.g. 0.2",
        )
    return number
