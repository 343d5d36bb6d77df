"""Inputs and outputs of the model, by which its config and its requests are read."""

from __future__ import annotations

from dataclasses import dataclass

FRAMES = "frames"
SEED = "seed"


@dataclass(frozen=True)
class Input:
    """An input of one element, whose name is a field of `fastwan.serve.wire.CreateVideo`.

    Attributes:
        data_type: as Triton's config writes it.
    """

    name: str
    data_type: str
    optional: bool = True


INPUTS = (
    Input("prompt", "TYPE_STRING", optional=False),
    Input("negative_prompt", "TYPE_STRING"),
    Input("seed", "TYPE_UINT64"),
    Input("size", "TYPE_STRING"),
    Input("num_frames", "TYPE_INT32"),
    Input("sampler", "TYPE_STRING"),
    Input("guidance_scale", "TYPE_FP32"),
)
