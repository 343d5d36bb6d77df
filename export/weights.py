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

from fastwan.config import DiTConfig, LinearFormat, Recipe, VideoShape
from fastwan.export.cache import ExportCache, content_key, tensor_bytes
from fastwan.export.models.layers import rope_tables, timestep_frequencies
from fastwan.export.models.wan import WanDiT
from fastwan.export.onnx_io import TensorSource
from fastwan.export.quantize import Quantizer
from fastwan.parallel import in_order
from fastwan.plugins.nvfp4 import quantize_weight

_AHEAD = 4
"""Small groups made while a large one before them is not finished."""


@dataclass(frozen=True)
class Group:
    """Initializers that are made together from the same checkpoint tensors.

    Attributes:
        name: prefix of the initializers' names.
        sources: prefixes of the checkpoint tensors.
        kind: ``linear`` (targeted, weight and bias), ``qkv`` (three of them merged), ``dense``
            (weight and bias, never quantised), ``fp32`` or ``plain`` (one tensor).
    """

    name: str
    sources: tuple[str, ...]
    kind: str


def weight_groups(config: DiTConfig) -> list[Group]:
    """Every initializer of the transformer's graph that comes from the checkpoint."""
    condition = "condition_embedder"
    groups = [
        Group("text_embed.linear_1", (f"{condition}.text_embedder.linear_1",), "dense"),
        Group("text_embed.linear_2", (f"{condition}.text_embedder.linear_2",), "dense"),
        Group("embed.patch_embedding", ("patch_embedding",), "dense"),
        Group("embed.time_linear_1", (f"{condition}.time_embedder.linear_1",), "dense"),
        Group("embed.time_linear_2", (f"{condition}.time_embedder.linear_2",), "dense"),
        Group("embed.time_proj", (f"{condition}.time_proj",), "dense"),
        Group("head.scale_shift_table", ("scale_shift_table",), "fp32"),
        Group("head.proj_out", ("proj_out",), "dense"),
    ]
    for index in range(config.num_layers):
        block, text = f"blocks.{index}", f"text_kv.{index}"
        attn1, attn2 = f"{block}.attn1", f"{block}.attn2"
        groups += [
            Group(f"{text}.to_k", (f"{attn2}.to_k",), "linear"),
            Group(f"{text}.to_v", (f"{attn2}.to_v",), "linear"),
            Group(f"{text}.norm_k.weight", (f"{attn2}.norm_k.weight",), "plain"),
            Group(f"{block}.scale_shift_table", (f"{block}.scale_shift_table",), "fp32"),
            Group(f"{attn1}.qkv", tuple(f"{attn1}.to_{part}" for part in "qkv"), "qkv"),
            Group(f"{attn1}.norm_q.weight", (f"{attn1}.norm_q.weight",), "plain"),
            Group(f"{attn1}.norm_k.weight", (f"{attn1}.norm_k.weight",), "plain"),
            Group(f"{attn1}.to_out", (f"{attn1}.to_out.0",), "linear"),
            Group(f"{block}.norm2.weight", (f"{block}.norm2.weight",), "fp32"),
            Group(f"{block}.norm2.bias", (f"{block}.norm2.bias",), "fp32"),
            Group(f"{attn2}.to_q", (f"{attn2}.to_q",), "linear"),
            Group(f"{attn2}.norm_q.weight", (f"{attn2}.norm_q.weight",), "plain"),
            Group(f"{attn2}.to_out", (f"{attn2}.to_out.0",), "linear"),
            Group(f"{block}.ffn.fc1", (f"{block}.ffn.net.0.proj",), "linear"),
            Group(f"{block}.ffn.fc2", (f"{block}.ffn.net.2",), "linear"),
        ]
    return groups


class GroupLoader:
    """Makes the tensors of a group."""

    def __init__(
        self,
        source: TensorSource,
        format: LinearFormat,
        quantize: Quantizer,
        dtype: torch.dtype,
    ) -> None:
        self.source, self.format, self.quantize, self.dtype = source, format, quantize, dtype

    def __call__(self, group: Group) -> dict[str, Tensor]:
        name, sources = group.name, group.sources
        if group.kind == "fp32":
            return {name: self.source.read(sources[0]).float()}
        if group.kind == "plain":
            return {name: self._cast(sources[0])}
        if group.kind == "dense":
            weight = self._cast(f"{sources[0]}.weight")
            bias = self._cast(f"{sources[0]}.bias")
            return {f"{name}.weight": weight.reshape(weight.shape[0], -1), f"{name}.bias": bias}
        if group.kind == "linear":
            tensors = self._weight(name, sources[0])
            return tensors | {f"{name}.bias": self._cast(f"{sources[0]}.bias")}
        return self._qkv(name, sources)

    def _cast(self, name: str) -> Tensor:
        return self.source.read(name).to(self.dtype)

    def _weight(self, name: str, source: str) -> dict[str, Tensor]:
        if self.format != "nvfp4":
            return {f"{name}.weight": self._cast(f"{source}.weight")}
        packed = self.quantize(self.source.read(f"{source}.weight").to(torch.bfloat16))
        return {
            f"{name}.weight": packed.packed,
            f"{name}.weight_scale": packed.block_scale,
            f"{name}.weight_scale_2": packed.global_scale,
        }

    def _qkv(self, name: str, sources: tuple[str, ...]) -> dict[str, Tensor]:
        parts = [self._weight(name, source) for source in sources]
        tensors = {f"{name}.weight": torch.cat([part[f"{name}.weight"] for part in parts])}
        scales = torch.ones(3)
        if self.format == "nvfp4":
            key = f"{name}.weight_scale"
            blocks = [part[key].view(torch.uint8) for part in parts]
            tensors[key] = torch.cat(blocks).view(torch.float8_e4m3fn)
            # The merged weight has global scale 1; each third's own goes to the attention node.
            tensors[f"{name}.weight_scale_2"] = torch.ones(())
            scales = torch.stack([part[f"{name}.weight_scale_2"] for part in parts])
        tensors[f"{name}_scale"] = scales
        tensors[f"{name}_bias"] = torch.cat([self._cast(f"{source}.bias") for source in sources])
        return tensors


def load_weights(
    source: TensorSource,
    config: DiTConfig,
    format: LinearFormat,
    *,
    quantize: Quantizer = quantize_weight,
    dtype: torch.dtype = torch.bfloat16,
    workers: int = 1,
) -> Iterator[tuple[Group, dict[str, Tensor]]]:
    """Yield each group's initializers, in the order of `weight_groups`.

    Args:
        source: checkpoint tensors under diffusers' names.
        config: of the transformer.
        format: of the targeted linears.
        quantize: from a bf16 weight to NVFP4; the reference's by default.
        dtype: of everything that is neither quantised nor held in fp32.
        workers: threads; finished groups that wait for a larger one before them are few and packed.
    """
    load = GroupLoader(source, format, quantize, dtype)
    yield from in_order(load, weight_groups(config), workers, ahead=_AHEAD)


@dataclass(frozen=True)
class Made:
    """Initializers of a group, and the SHA-256 of each as the reference quantiser makes it."""

    tensors: dict[str, Tensor]
    digests: dict[str, str]


class _Held:
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
    quantize: Quantizer,
    cache: ExportCache | None = None,
    workers: int = 1,
) -> Iterator[tuple[Group, Made]]:
    """Like `load_weights`, with the digests of what the reference quantiser makes.

    Each checkpoint tensor is read once. A linear that the cache has is not quantised again.
    """

    def make(group: Group) -> Made:
        held = _Held(source)
        load = GroupLoader(held, recipe.linears, quantize, torch.bfloat16)
        if recipe.linears != "nvfp4" or group.kind not in ("linear", "qkv"):
            tensors = load(group)
            return Made(tensors, {name: tensor_digest(value) for name, value in tensors.items()})
        key = ""
        if cache is not None:
            names = [f"{prefix}.{part}" for prefix in group.sources for part in ("weight", "bias")]
            facts = {"group": asdict(group), "recipe": asdict(recipe)}
            key = content_key("linear", facts, ((name, held.read(name)) for name in names))
            found = cache.tensors(key)
            if found is not None:
                return Made(found[0], found[1]["digests"])
        reference = GroupLoader(held, recipe.linears, quantize_weight, torch.bfloat16)(group)
        digests = {name: tensor_digest(value) for name, value in reference.items()}
        del reference
        made = Made(load(group), digests)
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
    format: LinearFormat = "nvfp4",
    dtype: torch.dtype = torch.bfloat16,
) -> WanDiT:
    """A `WanDiT` with the weights of a checkpoint, quantised by the reference quantiser."""
    module = WanDiT(config, shape, format, dtype)
    state = {"embed.frequency": timestep_frequencies(config.freq_dim)}
    for _, tensors in load_weights(source, config, format, dtype=dtype):
        state |= tensors
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def constant_tensors(config: DiTConfig, shape: VideoShape) -> dict[str, Tensor]:
    """Initializers of the graph that do not come from the checkpoint."""
    cos, sin = rope_tables(shape, config.head_dim)
    frequency = timestep_frequencies(config.freq_dim)
    return {"rope_cos": cos, "rope_sin": sin, "embed.frequency": frequency}
