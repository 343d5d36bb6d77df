"""`packing_bit_exact` of NVFP4: codes and scales by a third computation, that of ml_dtypes.

The bytes were written by ModelOpt, and `weights_bit_exact` holds them against the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from fastwan.manifest import Linear
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject, initializer, stored_tensor

if TYPE_CHECKING:
    from fastwan.export.checkpoint.reader import Checkpoint

_SHOWN = 4
_LARGEST = 6 * 448
"""What the largest value of a weight becomes before its global scale."""

Array = npt.NDArray[np.float32]


def check_packing(subject: Subject) -> Check:
    """FP4 codes and scales against ml_dtypes' own number types.

    With a checkpoint its weights are quantised anew. Without one the stored values must be what
    the recipe can make at all: quantising what they stand for gives the same bytes, and the
    largest block scale of a weight is 448.
    """
    bad: list[str] = []
    compared = 0
    for linear in subject.expected_linears:
        stored = _Stored(subject, linear)
        for source, part in zip(linear.sources, stored.parts(), strict=True):
            compared += part.codes.size
            if subject.checkpoint is None:
                good = _consistent(part)
            else:
                good = _same(part, _from_checkpoint(subject.checkpoint, source))
            if not good:
                bad.append(source)
    against = "their own values" if subject.checkpoint is None else "the checkpoint's weights"
    note = f"{compared} codes against {against} through ml_dtypes"
    note = f"{note}; {', '.join(bad[:_SHOWN])}" if bad else note
    value = float(len(bad)) if compared else None
    return Check(
        name="packing_bit_exact",
        metric="linears whose bytes differ",
        value=value,
        limit=0.0,
        note=note,
    )


class _Part:
    """Codes [N, K] and block scales [N, K/16] as ml_dtypes arrays, and the fp32 global scale."""

    def __init__(
        self, codes: npt.NDArray[np.uint8], scale: npt.NDArray[np.uint8], global_scale: np.float32
    ) -> None:
        self.codes, self.scale, self.global_scale = codes, scale, global_scale

    def values(self) -> Array:
        """What the codes stand for, without the global scale: exact in fp32."""
        codes = self.codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        scale = self.scale.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        blocks = codes.reshape(*scale.shape, 16) * scale[..., None]
        return np.asarray(blocks.reshape(codes.shape))


class _Stored:
    """A targeted linear as the bundle holds it, divided into its checkpoint linears."""

    def __init__(self, subject: Subject, linear: Linear) -> None:
        def raw(suffix: str) -> npt.NDArray[np.uint8]:
            tensor = initializer(subject.stored, f"{linear.name}.{suffix}")
            return np.frombuffer(tensor.tobytes(), np.uint8)

        rows = int(initializer(subject.stored, f"{linear.name}.weight").shape.numpy()[0])
        packed = raw("weight")
        codes = np.stack((packed & 15, packed >> 4), axis=-1).reshape(rows, -1)
        count = len(linear.sources)
        scales = np.repeat(raw("weight_scale_2").view(np.float32), count)
        if count > 1:
            name = f"{linear.name}_scale"
            merged = stored_tensor(initializer(subject.stored, name)).numpy()
            scales = scales * merged
        self._codes = np.split(codes, count)
        self._scales = np.split(raw("weight_scale").reshape(rows, -1), count)
        self._globals = scales

    def parts(self) -> list[_Part]:
        both = zip(self._codes, self._scales, self._globals, strict=True)
        return [_Part(codes, scale, np.float32(one)) for codes, scale, one in both]


def _same(a: _Part, b: _Part) -> bool:
    return bool(
        a.global_scale == b.global_scale
        and np.array_equal(a.scale, b.scale)
        and np.array_equal(a.codes, b.codes)
    )


def _quantise(weight: Array, global_scale: np.float32) -> _Part:
    """NVFP4 through the casts of ml_dtypes."""
    blocks = weight.reshape(weight.shape[0], -1, 16)
    amax = np.abs(blocks).max(-1)
    scale = amax / (np.float32(6) * global_scale)
    scale = np.where(amax == 0, np.float32(1), np.clip(scale, np.float32(2**-9), np.float32(448)))
    rounded = scale.astype(ml_dtypes.float8_e4m3fn)
    divided = blocks / (rounded.astype(np.float32) * global_scale)[..., None]
    clipped = np.clip(divided, -6, 6) + np.float32(0)
    codes = clipped.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(weight.shape)
    return _Part(codes, rounded.view(np.uint8), global_scale)


def _from_checkpoint(checkpoint: Checkpoint, source: str) -> _Part:
    values = checkpoint.transformer.read(f"{source}.weight").to(torch.bfloat16).float().numpy()
    amax = np.abs(values).max()
    return _quantise(values, np.float32(1) if amax == 0 else amax / np.float32(_LARGEST))


def _consistent(stored: _Part) -> bool:
    """Whether the recipe can have made these codes and scales from some weight."""
    values = stored.values()
    if not values.any():
        return True
    again = _quantise(values, np.float32(1))
    # A scale below 2**-6 keeps so few bits that the largest code of its block need not be 6.
    normal = stored.scale.view(ml_dtypes.float8_e4m3fn).astype(np.float32) >= 2.0**-6
    return bool(
        np.abs(values).max() == _LARGEST
        and np.array_equal(again.scale[normal], stored.scale[normal])
        and np.array_equal(_rows(again)[normal], _rows(stored)[normal])
    )


def _rows(part: _Part) -> Array:
    """Values by block, [N, K/16, 16]; minus zero equals zero there."""
    return part.values().reshape(*part.scale.shape, 16)
