"""Streaming TAEHV decode: one latent in, a few finished frames out, memories in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from fastwan.errors import BadInput
from fastwan.runtime.model.executor import Executor, fixed_shape, require_names


class Sliceable(Protocol):
    """An array, or a device buffer that can be indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    def __getitem__(self, index: Any) -> Any:
        """A view."""


A = TypeVar("A", bound=Sliceable)


class Decoder(Generic[A]):
    """The decoder's streaming step over any executor.

    Args:
        step: ``latent`` [1, C, h, w] and memories -> ``frames`` uint8 [n, H, W, 3] and, for each
            memory, its successor under the same name with ``_out`` behind it.

    Raises:
        BadInput: a memory has no successor of the same shape and dtype.
    """

    def __init__(self, step: Executor[A]) -> None:
        require_names(step, "decoder", {"latent"}, {"frames"})
        self._memories = tuple(name for name in step.inputs if name != "latent")
        require_names(step, "decoder", set(), {f"{name}_out" for name in self._memories})
        for name in self._memories:
            before, after = step.inputs[name], step.outputs[f"{name}_out"]
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                raise BadInput(f"{name} and {name}_out differ in shape or dtype", where="decoder")
        self._step = step

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """[H, W, 3] of a frame."""
        return fixed_shape(self._step.outputs["frames"])[1:]

    @property
    def frames_per_latent(self) -> int:
        return fixed_shape(self._step.outputs["frames"])[0]

    def num_frames(self, latent_frames: int) -> int:
        """Frames of a video; the first latent makes only one, see `frames`."""
        return (latent_frames - 1) * self.frames_per_latent + 1

    def chunks(self, latents: A) -> Iterator[A]:
        """Decode in order, one latent at a time.

        The decoder grows time before it has seen a predecessor, so all but the last frame of the
        first latent are artefacts of the zero memories and are dropped. Two sets of memories and
        frames take turns, so that frames can be copied away while the next ones are made.

        Args:
            latents: normalised latents [1, C, T, h, w].

        Yields:
            Frames of a latent, uint8 [n, H, W, 3], valid until the latent after the next.
        """
        read = {name: self._step.full(name) for name in self._memories}
        write: dict[str, A] = {}
        made: list[A] = []
        skip = self.frames_per_latent - 1
        for index in range(latents.shape[2]):
            results = self._step.run({"latent": latents[:, :, index], **read}, write)
            made = [*made[-1:], results["frames"]]
            yield results["frames"][skip:] if index == 0 else results["frames"]
            write = {f"{name}_out": read[name] for name in self._memories}
            if len(made) == 2:
                write["frames"] = made[0]
            read = {name: results[f"{name}_out"] for name in self._memories}

    def frames(self, latents: A) -> Iterator[A]:
        """Frames of `chunks` one by one, uint8 [H, W, 3]."""
        for chunk in self.chunks(latents):
            yield from (chunk[index] for index in range(chunk.shape[0]))
