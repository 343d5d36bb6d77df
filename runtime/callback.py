"""diffusers' callback at the end of a step: what it is given, and what it may give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from fastwan.errors import BadInput, shown
from fastwan.runtime.arguments import latents_like, to_floats
from fastwan.runtime.call import Calls
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.given import tensor_or_array
from fastwan.runtime.request import StepCallback

if TYPE_CHECKING:
    import torch

TENSOR_INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""What a callback may ask for. The last is None where there is no guidance."""

_WHERE = "callback_on_step_end"


def step_callback(
    pipeline: object,
    calls: Calls,
    callback: Callable[..., dict[str, Any] | None] | None,
    names: Sequence[str] | None,
) -> StepCallback | None:
    """`callback` as a request takes it; None for none.

    A callback object of diffusers (``PipelineCallback``) says itself which tensors it takes.

    Args:
        calls: tells which video the thread makes.
        callback: called as (pipeline, step, timestep, {name: tensor}).
        names: of the tensors that it is given.

    Raises:
        BadInput: no function, or a tensor that is not one of `TENSOR_INPUTS`.
    """
    asked = getattr(callback, "tensor_inputs", names)
    names = ("latents",) if asked is None else tuple(asked)
    if unknown := [name for name in names if name not in TENSOR_INPUTS]:
        raise BadInput(
            f"callback inputs {unknown} do not exist",
            where="callback_on_step_end_tensor_inputs",
            fix="there are " + ", ".join(TENSOR_INPUTS),
        )
    if callback is None:
        return None
    if not callable(callback):
        raise BadInput(f"{shown(callback)} cannot be called", where=_WHERE)

    def on_step(step: int, timestep: int, latents: torch.Tensor | Array) -> dict[str, Any] | None:
        call = calls.here()
        assert call is not None
        embeds = dict(zip(TENSOR_INPUTS[1:], call.embeds, strict=False))
        given: dict[str, Any] = {name: None for name in names}
        given |= {name: _embeds_tensor(embeds[name]) for name in names if name in embeds}
        if "latents" in names:
            given["latents"] = latents
        returned = callback(pipeline, step, timestep, given)
        if isinstance(returned, Mapping | None):
            _refuse_other_embeds({**given, **(returned or {})}, embeds)
        return returned

    return on_step


def _embeds_tensor(embeds: Array) -> Any:
    """A copy of embeddings as diffusers has them, bf16."""
    copied = tensor_or_array(embeds.astype(np.float32))
    return _rounded(copied) if isinstance(copied, np.ndarray) else copied.bfloat16()


def _rounded(values: Array) -> Array:
    return values.astype(ml_dtypes.bfloat16)


def _refuse_other_embeds(tensors: Mapping[str, Any], embeds: Mapping[str, Array]) -> None:
    for name in TENSOR_INPUTS[1:]:
        changed = tensors.get(name)
        if changed is None:
            continue
        if name not in embeds:
            raise BadInput(f"{name} have no effect: there is no guidance", where=_WHERE)
        try:
            values = _rounded(to_floats(changed, name))
            same = np.array_equal(values, _rounded(embeds[name].astype(np.float32)))
        except BadInput:
            same = False
        if not same:
            raise BadInput(
                f"{name} cannot change between two steps: their keys and values are computed "
                "once a video",
                where=_WHERE,
                fix="return the ones that were given",
            )


def after_callback(returned: object, state: torch.Tensor | Array) -> Array:
    """Latents to go on with after a callback, which may have changed `state` in place.

    Raises:
        BadInput: it returned something else than a dictionary or None, or latents of another
            shape, or that are not finite.
    """
    if not isinstance(returned, Mapping | None):
        raise BadInput(
            f"the callback returned {shown(returned)}, not a dictionary or None",
            where=_WHERE,
            fix="return the dictionary that it was given",
        )
    latents = (returned or {}).get("latents", state)
    return latents_like(latents, tuple(state.shape), "latents of the callback")
