"""`weights_bit_exact`: the stored bytes are the checkpoint's, as the reference quantises them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import onnx_ir as ir
import torch

from fastwan.export.models.taehv import TAEHVDecoder
from fastwan.export.models.umt5 import EMBEDDING, UMT5Encoder, relative_buckets
from fastwan.export.models.wan import WanDiT
from fastwan.export.weights import constant_tensors, load_weights, tensor_digest
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject

_SMALL = 64
"""Initializers up to this size may be constants of the graph; larger ones are weights."""
_SHOWN = 4


def check_weights(subject: Subject) -> Check:
    """Every weight of every graph against its digest."""
    bad: list[str] = []
    count = 0
    trusted = subject.checkpoint is None
    for name in ("dit", "decoder", "text_encoder"):
        if name not in subject.present:
            continue
        digests = expected_digests(subject, name)
        if not digests:
            # A manifest has none of the decoder, whose weights are in the file as they came.
            bad += [] if trusted and name == "decoder" else [f"{name}: no digests"]
            continue
        wanted = _weights_of(subject, name) | set(digests)
        model = subject.load(subject.graph(name).file)
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
    if "text_encoder" in subject.present and subject.checkpoint is not None:
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
        groups = load_weights(checkpoint.transformer, subject.dit_config, subject.recipe)
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
    dtype = getattr(torch, subject.graph("decoder").inputs[0].dtype)
    return {name: tensor_digest(source.read(name).to(dtype)) for name in source.names()}


def _text_encoder_digests(subject: Subject) -> dict[str, str]:
    assert subject.checkpoint is not None
    source = subject.checkpoint.text_encoder
    digests: dict[str, str] = {}
    if source is None:
        return digests
    quantised = {linear.name for linear in subject.graph("text_encoder").linears}
    for name in source.names():
        if name == EMBEDDING:
            continue
        linear, _, last = name.rpartition(".")
        weight = source.read(name).to(torch.bfloat16)
        stored = {last: weight}
        if linear in quantised:
            stored = subject.text_recipe.stored(weight, torch.bfloat16, reference=True)
        digests |= {f"{linear}.{part}": tensor_digest(made) for part, made in stored.items()}
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
            module = WanDiT(subject.dit_config, subject.shape, subject.recipe)
            return {*module.state_dict(), "rope_cos", "rope_sin"}
        if component == "decoder":
            return set(TAEHVDecoder(subject.decoder_config).state_dict())
        module = UMT5Encoder(subject.text_config, subject.text_recipe)
    return set(module.state_dict()) - {EMBEDDING} | {"relative_buckets"}


def _unknown(model: ir.Model, wanted: Iterable[str]) -> list[str]:
    """Large initializers that no configuration calls for."""
    known = set(wanted)
    return [
        name
        for name, value in model.graph.initializers.items()
        if name not in known and value.const_value is not None and value.const_value.size > _SMALL
    ]
