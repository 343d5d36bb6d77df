"""`weights_bit_exact` and `packing_bit_exact`: the stored bytes are the checkpoint's, quantised.

The bytes were written by ModelOpt; they are held against the reference quantiser and against a
third computation of ml_dtypes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fastwan.bundle import Linear
from fastwan.config import LinearFormat
from fastwan.export.models.taehv import TAEHVDecoder
from fastwan.export.models.umt5 import EMBEDDING, UMT5Encoder, relative_buckets
from fastwan.export.models.wan import WanDiT
from fastwan.export.weights import constant_tensors, load_weights, tensor_digest
from fastwan.plugins.nvfp4 import quantize_weight
from fastwan.quality.verify.modules import text_encoder_format
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject, initializer, stored_tensor

if TYPE_CHECKING:
    from fastwan.export.checkpoint.reader import Checkpoint

_SMALL = 64
"""Initializers up to this size may be constants of the graph; larger ones are weights."""
_SHOWN = 4
_LARGEST = 6 * 448
"""What the largest value of a weight becomes before its global scale."""

Array = npt.NDArray[np.float32]


def check_weights(subject: Subject) -> Check:
    """Every weight of every graph against its digest."""
    bad: list[str] = []
    count = 0
    trusted = subject.checkpoint is None
    for name in ("dit", "decoder", "text_encoder"):
        if name not in subject.graphs:
            continue
        digests = expected_digests(subject, name)
        if not digests:
            continue
        wanted = _weights_of(subject, name) | set(digests)
        model = subject.load(subject.graphs[name].file)
        for weight in sorted(wanted):
            stored = model.graph.initializers.get(weight)
            data = None if stored is None else stored.const_value
            count += 1
            if data is None:
                bad.append(f"{weight}: not in the graph")
            elif weight not in digests:
                bad.append(f"{weight}: no digest")
            elif hashlib.sha256(data.tobytes()).hexdigest() != digests[weight]:
                bad.append(f"{weight}: other bytes")
        bad += [f"{weight}: unknown weight" for weight in _unknown(model, wanted)]
    if "text_encoder" in subject.graphs and subject.checkpoint is not None:
        count += 1
        bad += [] if _embedding_matches(subject) else ["embedding.safetensors: other bytes"]
    against = "the manifest's digests" if trusted else "the checkpoint"
    note = f"{count} tensors against {against}"
    note = f"{note}; {'; '.join(bad[:_SHOWN])}" if bad else note
    value = float(len(bad)) if count else None
    return Check(
        name="weights_bit_exact", metric="tensors that differ", value=value, limit=0.0, note=note
    )


def expected_digests(subject: Subject, component: str) -> dict[str, str]:
    """SHA-256 by weight: from the checkpoint where there is one, else from the manifest.

    What follows from the configuration alone (rotary tables, frequencies, position buckets) is
    computed anew in either case. Empty where neither source knows the component.
    """
    checkpoint = subject.checkpoint
    known = subject.manifest.onnx.tensor_digests
    if component == "dit":
        constants = constant_tensors(subject.dit_config, subject.shape)
        computed = {name: tensor_digest(tensor) for name, tensor in constants.items()}
        if checkpoint is None:
            others = {n: d for n, d in known.items() if n.split(".")[0] not in _OTHER_ROOTS}
            return others | computed
        groups = load_weights(checkpoint.transformer, subject.dit_config, subject.recipe.linears)
        for _, tensors in groups:
            computed |= {name: tensor_digest(tensor) for name, tensor in tensors.items()}
        return computed
    root = _ROOTS[component]
    if checkpoint is None:
        digests = {n: d for n, d in known.items() if n.split(".")[0] == root}
    elif component == "decoder":
        digests = _decoder_digests(subject)
    else:
        digests = _text_encoder_digests(subject)
    if digests and component == "text_encoder":
        buckets = relative_buckets(subject.text_config, subject.dit_config.text_length)
        digests["relative_buckets"] = tensor_digest(buckets)
    return digests


_ROOTS = {"decoder": "decoder", "text_encoder": "encoder"}
_OTHER_ROOTS = {*_ROOTS.values(), "relative_buckets"}


def _decoder_digests(subject: Subject) -> dict[str, str]:
    assert subject.checkpoint is not None
    source = subject.checkpoint.decoder
    if source is None:
        return {}
    dtype = getattr(torch, subject.graphs["decoder"].inputs[0].dtype)
    return {name: tensor_digest(source.read(name).to(dtype)) for name in source.names()}


def _text_encoder_digests(subject: Subject) -> dict[str, str]:
    assert subject.checkpoint is not None
    source = subject.checkpoint.text_encoder
    digests: dict[str, str] = {}
    if source is None:
        return digests
    quantised = {f"{x.name}.weight" for x in subject.graphs["text_encoder"].linears}
    for name in source.names():
        if name == EMBEDDING:
            continue
        weight = source.read(name).to(torch.bfloat16)
        if name in quantised:
            packed = quantize_weight(weight)
            digests[name] = tensor_digest(packed.packed)
            digests[f"{name}_scale"] = tensor_digest(packed.block_scale)
            digests[f"{name}_scale_2"] = tensor_digest(packed.global_scale)
        else:
            digests[name] = tensor_digest(weight)
    return digests


def _embedding_matches(subject: Subject) -> bool:
    from safetensors.torch import load_file

    from fastwan.runtime.model.text import EMBEDDING as FILE

    assert subject.checkpoint is not None
    assert subject.checkpoint.text_encoder is not None
    stored = load_file(subject.bundle.file(FILE))["weight"]
    source = subject.checkpoint.text_encoder.read(EMBEDDING).to(torch.bfloat16)
    return tensor_digest(stored) == tensor_digest(source)


def _weights_of(subject: Subject, component: str) -> set[str]:
    """Names of a component's weights, as they follow from its configuration alone."""
    with torch.device("meta"):
        module: torch.nn.Module
        if component == "dit":
            format: LinearFormat = subject.recipe.linears
            module = WanDiT(subject.dit_config, subject.shape, format)
            return {*module.state_dict(), "rope_cos", "rope_sin"}
        if component == "decoder":
            return set(TAEHVDecoder(subject.decoder_config).state_dict())
        module = UMT5Encoder(subject.text_config, text_encoder_format(subject))
    return set(module.state_dict()) - {EMBEDDING} | {"relative_buckets"}


def _unknown(model: ir.Model, wanted: Iterable[str]) -> list[str]:
    """Large initializers that no configuration calls for."""
    known = set(wanted)
    return [
        name
        for name, value in model.graph.initializers.items()
        if name not in known and value.const_value is not None and value.const_value.size > _SMALL
    ]


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
