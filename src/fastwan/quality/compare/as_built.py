"""A bundle with the attention of its engines, which need not be what its model was made for."""

from __future__ import annotations

from functools import cached_property

import onnx_ir as ir

from fastwan.config import MODELS
from fastwan.export.attentions import Attention, find_attention
from fastwan.quality.verify.quantizer import lowered_parts
from fastwan.quality.verify.subject import Subject
from fastwan.tables import lookup


class AsBuilt(Subject):
    """A bundle whose lowered graphs compute what its engines do.

    `Subject` has the attention that the model was made for, and so has the reference that a bundle
    ships: two bundles of one model would be the same whatever attention they were built with.
    """

    @cached_property
    def attention(self) -> Attention:
        return find_attention(self.manifest.attention)


def ships_its_reference(subject: Subject) -> bool:
    """Whether the CPU graph in the bundle has the attention that is asked for."""
    model = lookup(MODELS, subject.manifest.onnx.model.name, "model")
    return subject.attention.name == model.attention


def reference_parts(subject: Subject) -> dict[str, ir.Model]:
    """The transformer's CPU graphs with the subject's attention: as shipped, or lowered now."""
    return lowered_parts(subject) if ships_its_reference(subject) else subject.lowered.parts
