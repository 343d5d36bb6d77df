"""Kernels of the attention are run in the bundle's size and held to sampled rows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import pytest
import torch

from fastwan.plugins import attention_reference, packing, prologue_reference
from fastwan.plugins.regions import RegionOp
from fastwan.plugins.regions.attention import SageTensors
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes, SageLayout
from fastwan.runtime.device.kernel_choice import LIMIT
from fastwan.runtime.device.kernel_trial import AttentionTrial
from fastwan.runtime.device.null import Call, NullDevice, NullKernels
from fastwan.runtime.recording.machine import DeviceError
from testkit.host_device import HostDevice, at

REGION = SageAttention3(1, 136, SageAttributes(1, 130))


def layout_of(region: SageAttention3) -> SageLayout:
    """Operands one after the other, as far apart as they are large."""
    layout = SageLayout(padded_tokens=256)
    codes, scales, offset = 256 * 64, 256 * 8, 0
    for name in packing.Operands._fields:
        setattr(layout, name, offset)
        offset += scales if name.endswith("scale") else codes
    return layout


class ReferenceKernels(NullKernels):
    """The region's reference over host memory; `spoil` changes its output.

    Args:
        spoil: by implementation, what is done to [B, L, C].
    """

    def __init__(
        self, device: HostDevice, spoil: dict[str, Callable[[np.ndarray], None]] | None = None
    ) -> None:
        super().__init__(device)
        self._host = device
        self.spoil = spoil or {}

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        assert isinstance(region, SageAttention3)
        call = Call("region", str(region), stream)
        self._host.submit(call, lambda: self._run(region, inputs, outputs[0], workspace))

    def _run(
        self, region: SageAttention3, inputs: Sequence[int], output: int, workspace: int
    ) -> None:
        tensors = []
        for spec, address in zip(region.inputs, inputs, strict=True):
            shape = tuple(int(size) for size in spec.shape)
            values = at(address, spec.dtype, int(np.prod(shape))).astype(np.float32)
            kind = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
            tensors.append(torch.from_numpy(values.reshape(shape)).to(kind))
        attributes = region.attributes
        heads, tokens = attributes.num_heads, attributes.num_tokens
        rows = prologue_reference.prologue(
            *SageTensors(*tensors), num_heads=heads, num_tokens=tokens, eps=attributes.eps
        )
        q, k, v = (each[:, :tokens] for each in rows)
        for name, operand in zip(
            packing.Operands._fields, packing.pack_operands(q, k, v), strict=True
        ):
            raw = operand.contiguous().numpy().tobytes()
            ctypes.memmove(workspace + getattr(layout_of(region), name), raw, len(raw))
        out = np.zeros((region.batch, region.length, region.channels), np.float32)
        made = attention_reference.sage_attention(q, k, v, attributes.softmax_scale)
        out[:, :tokens] = made.flatten(2).float().numpy()
        if region.implementation in self.spoil:
            self.spoil[region.implementation](out)
        raw = out.astype(ml_dtypes.bfloat16).tobytes()
        ctypes.memmove(output, raw, len(raw))


def trial(kernels: ReferenceKernels, device: HostDevice) -> AttentionTrial:
    return AttentionTrial(device, kernels, layout_of, 64)


def test_kernels_that_compute_the_region_agree() -> None:
    device = HostDevice()
    candidates = trial(ReferenceKernels(device), device)(REGION, REGION.alternatives)
    assert [each.kernel for each in candidates] == ["sage3", "flashinfer"]
    assert all(each.relative_l2 is not None and each.relative_l2 < 5e-3 for each in candidates)
    assert all(each.agrees and each.milliseconds is None for each in candidates)
    assert device.free_bytes() == device.total_bytes


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: out.__setitem__((0, slice(0, 64)), out[0, 64:128].copy()),
        lambda out: out.__setitem__((0, 129), out[0, 128].copy()),
        lambda out: out.__setitem__((0, 130), 1.0),
        lambda out: out.__setitem__((0, 5), np.nan),
    ],
    ids=["rows exchanged", "last row", "padding", "not a number"],
)
def test_one_that_does_not_is_found(spoil: Callable[[np.ndarray], None]) -> None:
    device = HostDevice()
    kernels = ReferenceKernels(device, {"flashinfer": spoil})
    right, wrong = trial(kernels, device)(REGION, REGION.alternatives)
    assert right.agrees
    assert not wrong.agrees
    assert wrong.relative_l2 is not None
    assert wrong.relative_l2 > LIMIT


def test_one_that_fails_says_why() -> None:
    def fail(out: np.ndarray) -> None:
        raise DeviceError("launch failed")

    device = HostDevice()
    kernels = ReferenceKernels(device, {"sage3": fail})
    broken, right = trial(kernels, device)(REGION, REGION.alternatives)
    assert (broken.fault, broken.agrees, right.agrees) == ("launch failed", False, True)


def test_memory_is_given_back_where_there_is_too_little() -> None:
    device = NullDevice(total_bytes=1 << 10)
    kernels = NullKernels(device)
    with pytest.raises(DeviceError, match="out of memory"):
        AttentionTrial(device, kernels, layout_of, 64)(REGION, REGION.alternatives)
    assert device.free_bytes() == device.total_bytes
