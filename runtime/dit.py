"""The diffusion transformer: a context once a prompt, a velocity each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from fastwan.bundle import TensorSpec
from fastwan.errors import BadInput
from fastwan.runtime.executors import Executor, fixed_shape, require_names

A = TypeVar("A")


class DiT(Generic[A]):
    """WanDiT over two graphs, both run by any executor.

    Args:
        text_kv: ``encoder_hidden_states`` [1, text_length, text_dim] -> the keys and values of
            every block's cross-attention, ``blocks.{i}.attn2.k`` and ``.v``.
        dit: ``latents`` [1, C, T, H, W], ``timestep`` [1] and those keys and values ->
            ``velocity`` like `latents`.

    Raises:
        BadInput: the two graphs do not fit together.
    """

    def __init__(self, text_kv: Executor[A], dit: Executor[A]) -> None:
        require_names(text_kv, "text_kv", {"encoder_hidden_states"}, set())
        require_names(dit, "dit", {"latents", "timestep"} | set(text_kv.outputs), {"velocity"})
        if extra := dit.inputs.keys() - text_kv.outputs.keys() - {"latents", "timestep"}:
            raise BadInput(f"nothing provides {', '.join(sorted(extra))}", where="dit")
        self._text_kv = text_kv
        self._dit = dit
        self._timesteps: dict[int, A] = {}

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

    def prepare(self, prompt_embeds: A) -> Mapping[str, A]:
        """Context of a prompt: the cross-attention keys and values by name.

        Args:
            prompt_embeds: `text_shape`, zero rows behind the prompt's own length.
        """
        return self._text_kv.run({"encoder_hidden_states": prompt_embeds})

    def velocity(self, latents: A, timestep: int, context: Mapping[str, A]) -> A:
        """Velocity (noise minus clean latents) that the model predicts at `timestep`."""
        if timestep not in self._timesteps:
            # Filled once a schedule, so that nothing is written to the device inside the loop.
            self._timesteps[timestep] = self._dit.full("timestep", timestep)
        inputs = {"latents": latents, "timestep": self._timesteps[timestep], **context}
        return self._dit.run(inputs)["velocity"]
