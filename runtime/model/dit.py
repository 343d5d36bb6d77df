"""The diffusion transformer: tables once a timestep, a context once a prompt, then velocities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec
from fastwan.runtime.model.executor import Executor, fixed_shape, require_names

A = TypeVar("A")

DIT_GRAPHS = ("time_tables", "text_kv", "dit")
"""The graphs of a transformer, in the order in which `DiT` takes them."""


class DiT(Generic[A]):
    """WanDiT over three graphs, all run by any executor.

    Args:
        time_tables: ``timestep`` [1] -> what follows from it alone: ``temb`` [1, width] and
            ``timestep_proj`` [1, 6, width], to which each block adds its own table.
        text_kv: ``encoder_hidden_states`` [1, text_length, text_dim] -> the keys and values of
            every block's cross-attention, ``blocks.{i}.attn2.k`` and ``.v``.
        dit: ``latents`` [1, C, T, H, W], those tables, keys and values -> ``velocity`` like
            `latents`.

    Raises:
        BadInput: the graphs do not fit together.
    """

    def __init__(self, time_tables: Executor[A], text_kv: Executor[A], dit: Executor[A]) -> None:
        require_names(time_tables, "time_tables", {"timestep"}, set())
        require_names(text_kv, "text_kv", {"encoder_hidden_states"}, set())
        given = {"latents", *time_tables.outputs, *text_kv.outputs}
        require_names(dit, "dit", given, {"velocity"})
        if extra := dit.inputs.keys() - given:
            raise BadInput(f"nothing provides {', '.join(sorted(extra))}", where="dit")
        self._time_tables = time_tables
        self._text_kv = text_kv
        self._dit = dit
        self._tables: dict[int, Mapping[str, A]] = {}

    @property
    def latents_shape(self) -> tuple[int, ...]:
        """[1, C, T, H, W], fixed when the bundle was built."""
        return fixed_shape(self._dit.inputs["latents"])

    @property
    def text_shape(self) -> tuple[int, ...]:
        """[1, text_length, text_dim] of the prompt embeddings."""
        return fixed_shape(self.text_spec)

    @property
    def text_spec(self) -> TensorSpec:
        """Prompt embeddings as the graph takes them."""
        return self._text_kv.inputs["encoder_hidden_states"]

    def tables(self, timestep: int) -> Mapping[str, A]:
        """Tables of a timestep by name, computed when they are first asked for.

        Asked for before the loop, nothing of them is left to do inside it.
        """
        if timestep not in self._tables:
            inputs = {"timestep": self._time_tables.full("timestep", timestep)}
            self._tables[timestep] = self._time_tables.run(inputs)
        return self._tables[timestep]

    def prepare(self, prompt_embeds: A) -> Mapping[str, A]:
        """Context of a prompt: the cross-attention keys and values by name.

        Args:
            prompt_embeds: `text_shape`, zero rows behind the prompt's own length.
        """
        return self._text_kv.run({"encoder_hidden_states": prompt_embeds})

    def velocity(self, latents: A, timestep: int, context: Mapping[str, A]) -> A:
        """Velocity (noise minus clean latents) that the model predicts at `timestep`."""
        inputs = {"latents": latents, **self.tables(timestep), **context}
        return self._dit.run(inputs)["velocity"]
