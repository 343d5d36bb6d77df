"""The checks of `verify --device emulated` of what is launched between engines."""

from __future__ import annotations

from fastwan.manifest import Manifest
from fastwan.plugins.lifted import TEXT, derived
from fastwan.plugins.regions import REGIONS
from fastwan.quality.emulated.full_size import FullSize
from fastwan.quality.verify.report import Check

REGIONS_CHECK, PROMPT_CHECK = "emulated_regions", "emulated_prompt"
LOG_LIMIT = 2.0**-20
"""Of what a region reads of a prompt: a logarithm of at most 512, to two of its last units."""


def check_regions(full: FullSize) -> list[Check]:
    """Every region of the first step against its reference, on what it was given there.

    Returns:
        a check for each kind of region in the bundle.
    """
    _ = full.velocities
    return [_check_kind(full, op) for op in kinds(full.subject.manifest)]


def kinds(manifest: Manifest) -> tuple[str, ...]:
    """Kinds of regions that a bundle has, in the order of their table."""
    held = {node.op for region in manifest.regions.values() for node in region.nodes}
    return tuple(op for op in REGIONS if op in held)


def _check_kind(full: FullSize, op: str) -> Check:
    seen = [figure for figure in full.watch.regions if figure.op == op]
    regions = full.subject.manifest.regions.values()
    expected = sum(node.op == op for region in regions for node in region.nodes)
    limit = REGIONS[op].limit
    zero = all(figure.padding_is_zero for figure in seen)
    return Check(
        name=f"{REGIONS_CHECK}_{op}",
        metric="relative L2 difference of a region to its reference"
        if limit
        else "bytes of a region that differ from its reference",
        value=max(figure.difference for figure in seen)
        if len(seen) == expected and zero and expected
        else None,
        limit=limit,
        label="emulated",
        note=f"{len(seen)} of {expected} regions; at least "
        f"{min((figure.equal for figure in seen), default=0.0):.3%} of elements equal; padding "
        + ("zero" if zero else "NOT zero"),
    )


def prompt_checks(manifest: Manifest) -> tuple[str, ...]:
    """`PROMPT_CHECK` for a bundle whose regions read of a prompt what its graph does not hold."""
    made = (spec.name for engine in manifest.engines.values() for spec in engine.outputs)
    known = (derived(name) for name in made)
    return (PROMPT_CHECK,) if any(each and each.source == TEXT for each in known) else ()


def check_prompt(full: FullSize) -> Check:
    """What regions read of the prompt, such as how many of its keys count, against the prompt."""
    values = full.of_prompt
    moved = [
        float(
            (found.double() - expected.double())
            .masked_fill(found == expected, 0.0)  # minus infinity, too
            .nan_to_num(1.0, posinf=1.0, neginf=1.0)
            .abs()
            .max()
        )
        for found, expected in values.values()
    ]
    return Check(
        name=PROMPT_CHECK,
        metric="largest difference of what regions read of the prompt to what follows from it",
        value=max(moved, default=None),
        limit=LOG_LIMIT,
        label="emulated",
        note=", ".join(values),
    )
