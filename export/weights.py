"""Checkpoint tensors by the names of the graph: merged, quantised, cast.

`load_weights` yields the initializers of the transformer in graph order, a few tensors at a time,
so that neither the bf16 nor the FP4 model is ever resident as a whole. The ONNX file and the torch
module take their weights from here, with ModelOpt's quantiser or with the reference's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fastwan.config import DiTConfig, VideoShape
from fastwan.export.cache import ExportCache, content_key, tensor_bytes
from fastwan.export.models.layers import rope_tables, timestep_frequencies
from fastwan.export.models.wan import WanDiT
from fastwan.export.onnx_io import TensorSource
from fastwan.export.recipes import Recipe
from fastwan.export.weight_groups import Group, WeightReader, weight_groups
from fastwan.parallel import in_order

_AHEAD = 4
"""Small groups made while a large one before them is not finished."""


def load_weights(
    source: TensorSource,
    config: DiTConfig,
    recipe: Recipe,
    *,
    dtype: torch.dtype = torch.bfloat16,
    workers: int = 1,
) -> Iterator[tuple[Group, dict[str, Tensor]]]:
    """Yield each group's initializers by the reference quantiser, as `weight_groups` orders them.

    Args:
        source: checkpoint tensors under diffusers' names.
        config: of the transformer.
        recipe: of the targeted linears.
        dtype: of everything that is neither quantised nor held in fp32.
        workers: threads; finished groups that wait for a larger one before them are few and packed.
    """
    reader = WeightReader(source, recipe, dtype, reference=True)
    yield from in_order(
        lambda group: group.load(reader), weight_groups(config), workers, ahead=_AHEAD
    )


@dataclass(frozen=True)
class PreparedTensors:
    """Initializers of a group, and the SHA-256 of each as the reference quantiser makes it."""

    tensors: dict[str, Tensor]
    digests: dict[str, str]


class _ReadOnce:
    """A source that reads each tensor once."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._read: dict[str, Tensor] = {}

    def names(self) -> Sequence[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def read(self, name: str) -> Tensor:
        if name not in self._read:
            self._read[name] = self._source.read(name)
        return self._read[name]


def make_weights(
    source: TensorSource,
    config: DiTConfig,
    recipe: Recipe,
    *,
    cache: ExportCache | None = None,
    workers: int = 1,
) -> Iterator[tuple[Group, PreparedTensors]]:
    """Yield each group's initializers as the exporter writes them, with the reference's digests.

    Each checkpoint tensor is read once. A linear that the cache has is not quantised again.
    """

    def load(group: Group, held: _ReadOnce, *, reference: bool) -> dict[str, Tensor]:
        return group.load(WeightReader(held, recipe, torch.bfloat16, reference=reference))

    def make(group: Group) -> PreparedTensors:
        held = _ReadOnce(source)
        if not (recipe.quantised and group.targeted):
            tensors = load(group, held, reference=False)
            return PreparedTensors(
                tensors, {name: tensor_digest(value) for name, value in tensors.items()}
            )
        key = ""
        if cache is not None:
            names = [f"{prefix}.{part}" for prefix in group.sources for part in ("weight", "bias")]
            facts = {"group": [type(group).__name__, asdict(group)], "recipe": asdict(recipe)}
            key = content_key("linear", facts, ((name, held.read(name)) for name in names))
            found = cache.tensors(key)
            if found is not None:
                return PreparedTensors(found[0], found[1]["digests"])
        digests = {
            name: tensor_digest(value) for name, value in load(group, held, reference=True).items()
        }
        made = PreparedTensors(load(group, held, reference=False), digests)
        if cache is not None:
            cache.put_tensors(key, made.tensors, {"digests": digests})
        return made

    yield from in_order(make, weight_groups(config), workers, ahead=_AHEAD)


def tensor_digest(tensor: Tensor) -> str:
    """Hex SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def load_module(
    source: TensorSource,
    config: DiTConfig,
    shape: VideoShape,
    recipe: Recipe,
    dtype: torch.dtype = torch.bfloat16,
) -> WanDiT:
    """A `WanDiT` with the weights of a checkpoint, quantised by the reference quantiser."""
    module = WanDiT(config, shape, recipe, dtype)
    state = {"embed.frequency": timestep_frequencies(config.freq_dim)}
    for _, tensors in load_weights(source, config, recipe, dtype=dtype):
        state |= tensors
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def constant_tensors(config: DiTConfig, shape: VideoShape) -> dict[str, Tensor]:
    """Initializers of the graph that do not come from the checkpoint."""
    cos, sin = rope_tables(shape, config.head_dim)
    frequency = timestep_frequencies(config.freq_dim)
    return {"rope_cos": cos, "rope_sin": sin, "embed.frequency": frequency}
