"""Where two bundles part in a step: behind which block, and at which tensor of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastwan.outputs import OutputFolder
from fastwan.quality.compare.blocks import BlockGraphs, added_difference, hidden_names
from fastwan.quality.compare.report import BlockDifference, TensorDifference
from fastwan.quality.compare.tensors import compare_results, run_both, save_results
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.executor import Array


@dataclass(frozen=True)
class View:
    """The step that is looked into.

    Attributes:
        texts: embeddings of the prompt by both bundles.
        latents: that both are given.
    """

    texts: tuple[Array, Array]
    latents: Array
    timestep: int


def compare_inside(
    a: Subject,
    b: Subject,
    view: View,
    hidden: tuple[Mapping[str, Array], Mapping[str, Array]] | None,
    limit: float,
    tensors: OutputFolder | None,
) -> dict[str, Any]:
    """Fields of `NumericComparison` on blocks and tensors.

    Args:
        hidden: hidden states that a device told of both bundles; None looks into their CPU
            references.
        limit: relative L2 difference beyond which a block or a tensor counts as parted.
        tensors: where the tensors go that were compared last.
    """
    names = ("a", "b")
    latents, timestep = view.latents, view.timestep
    if hidden is not None:
        common = [name for name in hidden[0] if name in hidden[1]]
        seen = [{name: each[name] for name in common} for each in hidden]
        results = run_both([lambda *_, s=each: s for each in seen], names, latents, timestep)
        graphs = None
    else:
        graphs = tuple(BlockGraphs(s, text) for s, text in zip((a, b), view.texts, strict=True))
        wanted = hidden_names(graphs[0].blocks)
        results = run_both([g.infer(wanted) for g in graphs], names, latents, timestep)
    compared = compare_results(results, limit)
    order = hidden_names(a.dit_config.num_layers)
    own = {} if graphs is None else _own(graphs[1], results, order, latents, timestep)
    blocks = tuple(
        BlockDifference(block=index, drift=compared[name].difference, own=own.get(name))
        for index, name in enumerate(order[1:])
        if name in compared
    )
    first = next((each.block for each in blocks if not compared[order[each.block + 1]]), None)
    found: dict[str, Any] = {"blocks": blocks, "first_block": first}
    if graphs is not None and first is not None:
        known = set(graphs[1].names(first))
        inside = [name for name in graphs[0].names(first) if name in known]
        results = run_both([g.infer(inside) for g in graphs], names, latents, timestep)
        compared = compare_results(results, limit)
        found["tensors"] = tuple(
            TensorDifference(name=name, difference=each.difference, largest=each.largest)
            for name, each in compared.items()
        )
        found["first_tensor"] = next((name for name, each in compared.items() if not each), "")
    if tensors is not None:
        save_results(results, tensors)
    return found


def _own(
    graphs: BlockGraphs, results: Any, order: list[str], latents: Array, timestep: int
) -> dict[str, float | None]:
    """What each block of the second bundle adds on the first one's hidden states, by its output."""
    (first,) = results["a"]
    given = {name: np.asarray(first[name]) for name in order}
    alone = graphs.each_alone(given, latents, timestep)
    return {
        name: added_difference(given[order[index]], given[name], alone[name])
        for index, name in enumerate(order[1:])
    }
