"""Where two bundles part inside the transformer: block by block, then tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastwan.export.passes.graphs import clone
from fastwan.quality.compare.as_built import reference_parts
from fastwan.quality.compare.tensors import Infer
from fastwan.quality.verify.executor import MemoryExecutor
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.executor import Array

BLOCK_LIMIT = 0.01
"""Relative L2 difference of hidden states that counts as parted where no limit was asked for: about
five times what rounding them to bf16 makes."""


def hidden_names(blocks: int) -> list[str]:
    """Names of the hidden states in front of, between and behind the blocks."""
    return ["embed.hidden", *(f"blocks.{index}.hidden_out" for index in range(blocks))]


class BlockGraphs:
    """The CPU reference of a bundle's transformer with a view of what lies inside.

    Args:
        subject: at the shape of its checks.
        text: embeddings of the prompt, [1, text_length, text_dim].
    """

    def __init__(self, subject: Subject, text: Array) -> None:
        self._subject = subject
        parts = reference_parts(subject)
        self._dit = parts["dit"]
        self._tables = MemoryExecutor(parts["time_tables"], subject.data_folder)
        context = MemoryExecutor(parts["text_kv"], subject.data_folder)
        self._context = context.run({"encoder_hidden_states": text})
        self.blocks = subject.dit_config.num_layers

    def names(self, block: int) -> list[str]:
        """Tensors of a block that every recipe's graph has under the same names, in order."""
        prefix = f"blocks.{block}."
        return [
            name
            for node in self._dit.graph
            for value in node.outputs
            if (name := str(value.name)).startswith(prefix)
            and "/" not in name
            and value.dtype in (ir.DataType.FLOAT, ir.DataType.BFLOAT16)
        ]

    def infer(self, names: Sequence[str]) -> Infer:
        """What computes these tensors from latents and timestep."""
        executor = self._executor(clone(self._dit), names)

        def run(latents: Array, timestep: int) -> Mapping[str, Array]:
            found = executor.run(self._inputs(latents, timestep))
            return {name: found[name].astype(np.float32) for name in names}

        return run

    def each_alone(
        self, hidden: Mapping[str, Array], latents: Array, timestep: int
    ) -> dict[str, Array]:
        """What each block makes of hidden states that it is given.

        Args:
            hidden: those of `hidden_names`.

        Returns:
            the hidden states behind each block, by name.
        """
        before, *behind = hidden_names(self.blocks)
        cut = [before, *behind[:-1]]
        model = clone(self._dit)
        for name, value in _values(model, cut).items():
            given = ir.val(f"{name}/given", value.dtype, value.shape)
            model.graph.inputs.append(given)
            ir.convenience.replace_all_uses_with(value, given)
        executor = self._executor(model, behind)
        inputs = self._inputs(latents, timestep)
        found = executor.run(inputs | {f"{name}/given": hidden[name] for name in cut})
        return {name: found[name] for name in behind}

    def _executor(self, model: ir.Model, names: Sequence[str]) -> MemoryExecutor:
        """The part of a model that computes these tensors, and no more."""
        model.graph.outputs.clear()
        model.graph.outputs.extend(_values(model, names).values())
        RemoveUnusedNodesPass()(model)
        return MemoryExecutor(model, self._subject.data_folder)

    def _inputs(self, latents: Array, timestep: int) -> dict[str, Array]:
        tables = self._tables.run({"timestep": self._tables.full("timestep", timestep)})
        return {"latents": latents, **tables, **self._context}


def _values(model: ir.Model, names: Sequence[str]) -> dict[str, ir.Value]:
    """Values of a graph that nodes compute, by name."""
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    return {name: made[name] for name in names}


def added_difference(before: Array, behind: Array, other: Array) -> float | None:
    """Difference of what two blocks make of the same hidden states, over the change (L2).

    Args:
        before: hidden states that both were given, [1, L, C].
        behind: what the first one makes of them.
        other: what the second one does.
    """
    change = float(np.linalg.norm((behind - before).astype(np.float64)))
    apart = float(np.linalg.norm((other - behind).astype(np.float64)))
    return apart / change if change else None
