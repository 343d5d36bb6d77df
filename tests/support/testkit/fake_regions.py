"""The fake bundle's transformer cut into segments, with attention regions between them."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from fastwan.bundle import Bundle
from fastwan.manifest import Engine, Region, RegionNode, TensorSpec

HEADS, LENGTH, TOKENS = 2, 128, 100
WIDTH = HEADS * 128


def spec(name: str, *shape: int, dtype: str = "bfloat16") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def region(index: int, op: str = "SageAttention3") -> Region:
    constants = (
        spec(f"scale.{index}", 3, dtype="float32"),
        spec(f"bias.{index}", 3 * WIDTH),
        spec(f"norm_q.{index}", WIDTH),
        spec(f"norm_k.{index}", WIDTH),
        spec("rope_cos", LENGTH, 64, dtype="float32"),
        spec("rope_sin", LENGTH, 64, dtype="float32"),
    )
    qkv, out = spec(f"qkv.{index}", 1, LENGTH, 3 * WIDTH), spec(f"out.{index}", 1, LENGTH, WIDTH)
    node = RegionNode(
        op=op,
        inputs=(qkv.name, *(constant.name for constant in constants)),
        outputs=(out.name,),
        attributes={"num_heads": HEADS, "num_tokens": TOKENS, "eps": 1e-6},
    )
    return Region(
        component="dit",
        after=f"segment_{index:02d}",
        nodes=(node,),
        inputs=(qkv,),
        constants=constants,
        outputs=(out,),
    )


def cut(opened: Bundle) -> Bundle:
    """The fake bundle with three segments and two regions in place of its transformer."""
    engines = dict(opened.manifest.engines)
    whole = engines.pop("dit")
    latents, temb, k, v = whole.inputs
    hidden = spec("hidden", 1, LENGTH, WIDTH)
    (velocity,) = whole.outputs

    def segment(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Engine:
        return whole.model_copy(update={"inputs": tuple(inputs), "outputs": tuple(outputs)})

    regions = {f"region_{i:02d}": region(i) for i in range(2)}
    qkv, out = zip(*((r.inputs[0], r.outputs[0]) for r in regions.values()), strict=True)
    segments = {
        "segment_00": segment([latents, temb], [hidden, qkv[0]]),
        "segment_01": segment([hidden, out[0], k, v], [spec("hidden_1", 1, LENGTH, WIDTH), qkv[1]]),
        "segment_02": segment([spec("hidden_1", 1, LENGTH, WIDTH), out[1], k, v], [velocity]),
    }
    decoder = engines.pop("decoder")
    engines |= {**segments, "decoder": decoder}
    update = {"engines": engines, "regions": regions}
    return Bundle(opened.root, opened.manifest.model_copy(update=update))


def zeros(regions: dict[str, Region]) -> dict[str, bytes]:
    """Zeros for the weights that regions read."""
    return {
        c.name: bytes(np.prod(c.shape) * np.dtype(c.dtype).itemsize)
        for r in regions.values()
        for c in r.constants
    }
