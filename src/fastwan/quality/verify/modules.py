"""Torch modules with the weights of a bundle's ONNX files.

A module knows nothing of the graph but the names of its weights: its structure follows from the
manifest's configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import onnx_ir as ir
import torch
from torch import Tensor, nn

from fastwan.errors import BadInput
from fastwan.export.attentions import Form
from fastwan.export.models.layers import Linear
from fastwan.export.models.taehv import StreamingStep, TAEHVDecoder
from fastwan.export.models.umt5 import EMBEDDING, UMT5Encoder
from fastwan.export.models.wan import WanDiT
from fastwan.export.recipes import Recipe
from fastwan.quality.verify.subject import Subject, initializer, stored_tensor

M = TypeVar("M", bound=nn.Module)

_MERGED_SCALE = "qkv_scale"


def dit_module(
    subject: Subject, dtype: torch.dtype, *, activations: bool, attention: Form
) -> WanDiT:
    """The transformer at the shape of the checks.

    Args:
        dtype: bf16 as the model computes, or fp32 without roundings.
        activations: quantise the activations of the linears.
        attention: what self-attention computes.
    """
    module = WanDiT(subject.dit_config, subject.check_shape, subject.recipe, dtype)
    load_stored(module, subject.stored)
    return module.set_quantizers(activations=activations, attention=attention)


def decoder_module(subject: Subject, dtype: torch.dtype = torch.float16) -> TAEHVDecoder:
    """The TAEHV decoder."""
    decoder = TAEHVDecoder(subject.decoder_config).to(dtype)
    return load_stored(decoder, subject.load(subject.graph("decoder").file))


def streaming_step(decoder: TAEHVDecoder) -> StreamingStep:
    """One latent frame of a decoder, as the graph has it."""
    return StreamingStep(decoder).eval()


def text_encoder_module(
    subject: Subject, embedding: Tensor, dtype: torch.dtype = torch.bfloat16
) -> UMT5Encoder:
    """The UMT5 encoder without activation quantisers.

    Args:
        embedding: [vocab_size, d_model] token embedding, which is not in the graph.
    """
    module = UMT5Encoder(subject.text_config, subject.text_recipe, dtype)
    model = subject.load(subject.graph("text_encoder").file)
    load_stored(module, model, {EMBEDDING: embedding})
    for part in module.modules():
        if isinstance(part, Linear):
            part.quantize_activation = False
    return module


def load_stored(module: M, model: ir.Model, others: dict[str, Tensor] | None = None) -> M:
    """Give a module the initializers of a graph by name, widened to its own dtype.

    Raises:
        BadInput: one is missing or has another shape or dtype.
    """
    state = {}
    for name, target in module.state_dict().items():
        given = (others or {}).get(name)
        tensor = stored_tensor(initializer(model, name)) if given is None else given
        if tensor.shape != target.shape or not _fits(tensor.dtype, target.dtype):
            raise BadInput(
                f"weight is {tensor.dtype} {list(tensor.shape)}, "
                f"the model has {target.dtype} {list(target.shape)}",
                where=name,
            )
        state[name] = tensor.to(target.dtype)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _fits(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a weight may be converted: exactly, that is, or not at all."""
    widened = {torch.bfloat16, torch.float16}
    return stored == wanted or (stored in widened and wanted == torch.float32)


def scale_names(recipe: Recipe) -> tuple[str, ...]:
    """Ends of the names of every fp32 factor of a weight."""
    return (*recipe.global_scales, _MERGED_SCALE)


@contextmanager
def moved_scales(
    module: nn.Module,
    ends: tuple[str, ...],
    generator: torch.Generator,
    move: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[None]:
    """A module with every fp32 factor of its weights moved, each element up or down at random.

    Args:
        ends: see `scale_names`.
        generator: draws the directions.
        move: from a factor and a mask that is true where it goes up.
    """
    saved = {name: value for name, value in module.state_dict().items() if name.endswith(ends)}
    moved = {}
    for name, value in saved.items():
        up = torch.randint(0, 2, value.shape, generator=generator).bool().to(value.device)
        moved[name] = move(value, up)
    module.load_state_dict(moved, strict=False, assign=True)
    try:
        yield
    finally:
        module.load_state_dict(saved, strict=False, assign=True)
