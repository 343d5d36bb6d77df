"""Initializers of the transformer by the checkpoint tensors that they are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastwan.config import DiTConfig
from fastwan.export.onnx_io import TensorSource
from fastwan.export.recipes import Recipe


class WeightReader:
    """Checkpoint tensors as a model in a recipe has them.

    Args:
        source: checkpoint tensors under diffusers' names.
        recipe: of the targeted linears.
        dtype: of everything that is neither quantised nor held in fp32.
        reference: quantise as the reference does, not as the exporter.
    """

    def __init__(
        self, source: TensorSource, recipe: Recipe, dtype: torch.dtype, *, reference: bool
    ) -> None:
        self.source, self.recipe, self.dtype = source, recipe, dtype
        self._reference = reference

    def cast(self, name: str) -> Tensor:
        """A tensor in the model's dtype."""
        return self.source.read(name).to(self.dtype)

    def stored(self, linear: str) -> dict[str, Tensor]:
        """What the recipe stores of a linear's weight, see `Recipe.stored`."""
        weight = self.source.read(f"{linear}.weight")
        return self.recipe.stored(weight, self.dtype, reference=self._reference)


@dataclass(frozen=True)
class Group(ABC):
    """Initializers that are made together from the same checkpoint tensors.

    Attributes:
        name: prefix of the initializers' names.
        sources: prefixes of the checkpoint tensors.
        targeted: whether the recipe is for it.
    """

    name: str
    sources: tuple[str, ...]
    targeted: ClassVar[bool] = False

    @abstractmethod
    def load(self, reader: WeightReader) -> dict[str, Tensor]:
        """The initializers by name."""


class Plain(Group):
    """One tensor in the model's dtype."""

    def load(self, reader: WeightReader) -> dict[str, Tensor]:
        return {self.name: reader.cast(self.sources[0])}


class Fp32(Group):
    """One tensor that is held in fp32."""

    def load(self, reader: WeightReader) -> dict[str, Tensor]:
        return {self.name: reader.source.read(self.sources[0]).float()}


class Dense(Group):
    """Weight [N, K] and bias of a linear that is never quantised."""

    def load(self, reader: WeightReader) -> dict[str, Tensor]:
        weight = reader.cast(f"{self.sources[0]}.weight")
        return {
            f"{self.name}.weight": weight.reshape(weight.shape[0], -1),
            f"{self.name}.bias": reader.cast(f"{self.sources[0]}.bias"),
        }


class Targeted(Group):
    """A targeted linear with its bias."""

    targeted = True

    def load(self, reader: WeightReader) -> dict[str, Tensor]:
        stored = reader.stored(self.sources[0]) | reader.recipe.of_input(self.name)
        return _named(self.name, stored) | {
            f"{self.name}.bias": reader.cast(f"{self.sources[0]}.bias")
        }


class Merged(Group):
    """Targeted linears as one; factors and biases go to the node that reads the product."""

    targeted = True

    def load(self, reader: WeightReader) -> dict[str, Tensor]:
        parts = [reader.stored(source) for source in self.sources]
        merged, factors = reader.recipe.merge(parts)
        biases = [reader.cast(f"{source}.bias") for source in self.sources]
        return _named(self.name, merged | reader.recipe.of_input(self.name)) | {
            f"{self.name}_scale": factors,
            f"{self.name}_bias": torch.cat(biases),
        }


def _named(linear: str, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{linear}.{part}": tensor for part, tensor in stored.items()}


def weight_groups(config: DiTConfig) -> list[Group]:
    """Every initializer of the transformer's graph that comes from the checkpoint."""
    condition = "condition_embedder"
    groups: list[Group] = [
        Dense("text_embed.linear_1", (f"{condition}.text_embedder.linear_1",)),
        Dense("text_embed.linear_2", (f"{condition}.text_embedder.linear_2",)),
        Dense("embed.patch_embedding", ("patch_embedding",)),
        Dense("embed.time_linear_1", (f"{condition}.time_embedder.linear_1",)),
        Dense("embed.time_linear_2", (f"{condition}.time_embedder.linear_2",)),
        Dense("embed.time_proj", (f"{condition}.time_proj",)),
        Fp32("head.scale_shift_table", ("scale_shift_table",)),
        Dense("head.proj_out", ("proj_out",)),
    ]
    for index in range(config.num_layers):
        block, text = f"blocks.{index}", f"text_kv.{index}"
        attn1, attn2 = f"{block}.attn1", f"{block}.attn2"
        groups += [
            Targeted(f"{text}.to_k", (f"{attn2}.to_k",)),
            Targeted(f"{text}.to_v", (f"{attn2}.to_v",)),
            Plain(f"{text}.norm_k.weight", (f"{attn2}.norm_k.weight",)),
            Fp32(f"{block}.scale_shift_table", (f"{block}.scale_shift_table",)),
            Merged(f"{attn1}.qkv", tuple(f"{attn1}.to_{part}" for part in "qkv")),
            Plain(f"{attn1}.norm_q.weight", (f"{attn1}.norm_q.weight",)),
            Plain(f"{attn1}.norm_k.weight", (f"{attn1}.norm_k.weight",)),
            Targeted(f"{attn1}.to_out", (f"{attn1}.to_out.0",)),
            Fp32(f"{block}.norm2.weight", (f"{block}.norm2.weight",)),
            Fp32(f"{block}.norm2.bias", (f"{block}.norm2.bias",)),
            Targeted(f"{attn2}.to_q", (f"{attn2}.to_q",)),
            Plain(f"{attn2}.norm_q.weight", (f"{attn2}.norm_q.weight",)),
            Targeted(f"{attn2}.to_out", (f"{attn2}.to_out.0",)),
            Targeted(f"{block}.ffn.fc1", (f"{block}.ffn.net.0.proj",)),
            Targeted(f"{block}.ffn.fc2", (f"{block}.ffn.net.2",)),
        ]
    return groups
