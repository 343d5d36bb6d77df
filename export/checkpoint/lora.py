"""LoRA files over a checkpoint: each tensor that they change is merged, in fp32, when it is read.

A file is held against the model before anything is read: every key has to be a part of an adapter
of one of its linears, of fitting rank and shape. The merged tensors are what a recipe quantises.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastwan.config import DiTConfig
from fastwan.errors import BadInput, listed
from fastwan.export.checkpoint.lora_names import PEFT, Part, parse_key
from fastwan.export.checkpoint.lora_scale import Scales, read_scales
from fastwan.export.checkpoint.names import expected_dit_tensors
from fastwan.export.checkpoint.safetensors_io import TensorFile
from fastwan.export.checkpoint.store import FLOAT_DTYPES, TensorStore
from fastwan.export.onnx_io import TensorSource
from fastwan.files import is_plain_file, sha256_file
from fastwan.manifest_sources import Adapter

_SCALE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)


def parse_lora(text: str) -> tuple[Path, float]:
    """The file and scale of ``FILE[:scale]``; the scale is 1 where none is given.

    Raises:
        BadInput: a scale that is 0, not finite, or beyond fp32.
    """
    name, colon, last = text.rpartition(":")
    if not colon or not name or not _SCALE.fullmatch(last):
        return Path(text), 1.0
    scale = float(last)
    if not 0 < abs(scale) <= 1e6:
        raise BadInput(f"scale {last} of a LoRA is not within 0 .. 1e6", where=f"--lora {text}")
    return Path(name), scale


@dataclass(frozen=True)
class _Change:
    """What one file adds to one tensor, times the factors.

    Attributes:
        factor: alpha / rank times the caller's scale.
        down: key of A, [rank, inputs]; or else `whole`.
        up: key of B, [outputs, rank].
        whole: key of the difference itself.
    """

    store: TensorStore
    factor: float
    down: str = ""
    up: str = ""
    whole: str = ""

    def of(self, shape: tuple[int, ...]) -> Tensor:
        """The difference, fp32, [shape]."""
        if self.whole:
            return self.factor * self.store.read(self.whole).float().reshape(shape)
        down, up = self.store.read(self.down).float(), self.store.read(self.up).float()
        return (up.flatten(1) @ down.flatten(1) * self.factor).reshape(shape)


@dataclass(frozen=True)
class Lora:
    """One LoRA file, held against a model.

    Attributes:
        record: what the manifest says of it.
        changes: by tensor of the model.
    """

    record: Adapter
    changes: Mapping[str, _Change]


def open_lora(path: Path, scale: float, config: DiTConfig) -> Lora:
    """Open a LoRA file and check that all of it fits a transformer.

    Raises:
        BadInput: no safetensors file, a key that is no part of an adapter of this model, or one of
            another rank or shape; the message names the first ones.
    """
    if not is_plain_file(path) or path.suffix != ".safetensors":
        raise BadInput(
            "no LoRA file", where=str(path), fix="give a .safetensors file, as FILE or FILE:scale"
        )
    file = TensorFile(path)
    store = TensorStore({name: (file, name) for name in file.names})
    modules: dict[str, dict[Part, str]] = defaultdict(dict)
    unknown = []
    shapes = expected_dit_tensors(config)
    for name in store.names():
        key = parse_key(name)
        if key is None or key.tensor not in shapes:
            unknown.append(name)
        elif key.part in modules[key.module]:
            raise BadInput(
                f"{name} and {modules[key.module][key.part]} are the same part of {key.module}",
                where=str(path),
            )
        else:
            modules[key.module][key.part] = name
    if unknown or not modules:
        raise BadInput(
            f"no LoRA of this model: unknown key {listed(unknown)}"
            if unknown
            else "holds no LoRA: it has no tensors",
            where=str(path),
            fix=(
                "only the transformer's LoRA and whole differences of its tensors are merged; no "
                "DoRA, LoHa or LoKr"
            ),
        )
    peft = any(name.startswith(PEFT) for name in store.names())
    scales = read_scales(path, file.metadata, peft=peft)
    changes: dict[str, _Change] = {}
    ranks = set()
    for module, parts in modules.items():
        made, rank = _changes(store, module, parts, shapes, scales, scale)
        changes |= made
        ranks |= {rank} if rank else set()
    record = Adapter(
        file=path.name,
        sha256=sha256_file(path),
        scale=scale,
        ranks=tuple(sorted(ranks)),
        tensors=len(changes),
    )
    return Lora(record, changes)


def _changes(
    store: TensorStore,
    module: str,
    parts: Mapping[Part, str],
    shapes: Mapping[str, tuple[int, ...]],
    scales: Scales,
    scale: float,
) -> tuple[dict[str, _Change], int]:
    """What a file changes of a module, by tensor, and the rank of its adapter; 0 without one."""
    weight, bias = f"{module}.weight", f"{module}.bias"
    made: dict[str, _Change] = {}
    rank, factor = 0, scale
    anywhere = store.where(next(iter(parts.values())))
    for key in parts.values():
        if store.dtype(key) not in FLOAT_DTYPES:
            dtype = str(store.dtype(key)).removeprefix("torch.")
            raise BadInput(f"a LoRA of dtype {dtype} is not merged", where=store.where(key))
    if "down" in parts or "up" in parts:
        if "down" not in parts or "up" not in parts:
            letter = "B" if "down" in parts else "A"
            raise BadInput(f"{module} has no lora_{letter}", where=anywhere)
        down, up = parts["down"], parts["up"]
        rank = _check_pair(store, down, up, shapes[weight])
        alpha = _alpha(store, parts["alpha"]) if "alpha" in parts else None
        factor = scale * scales.of(module, rank, alpha)
        made[weight] = _Change(store, factor, down, up)
    elif "alpha" in parts:
        raise BadInput(f"{module} has an alpha and no LoRA", where=store.where(parts["alpha"]))
    differences: tuple[tuple[Part, str, float], ...] = (
        ("diff", weight, scale), ("bias", bias, factor), ("bias_diff", bias, scale),
        ("modulation", module, scale),
    )  # fmt: skip
    for part, name, times in differences:
        if part not in parts:
            continue
        key = parts[part]
        if name in made:
            raise BadInput(f"{name} is changed twice", where=store.where(key))
        if store.shape(key) != shapes.get(name):
            raise BadInput(
                f"{name} has shape {list(shapes.get(name, ()))}, its difference "
                f"{list(store.shape(key))}",
                where=store.where(key),
            )
        made[name] = _Change(store, times, whole=key)
    return made, rank


def _check_pair(store: TensorStore, down: str, up: str, shape: tuple[int, ...]) -> int:
    """Rank of a pair of matrices that fits a weight.

    Raises:
        BadInput: of another rank or shape.
    """
    first, second = store.shape(down), store.shape(up)
    rank = first[0] if first else 0
    wanted = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
    if rank < 1 or len(second) < 2 or second[1] != rank:
        raise BadInput(
            f"lora_A {list(first)} and lora_B {list(second)} are not of one rank",
            where=store.where(up),
        )
    if (first, second) != wanted:
        raise BadInput(
            f"lora_A {list(first)} and lora_B {list(second)} do not fit a weight {list(shape)}",
            where=store.where(down),
            fix="it was trained on a model of another size",
        )
    return rank


def _alpha(store: TensorStore, key: str) -> float:
    if math.prod(store.shape(key)) != 1:
        raise BadInput(f"alpha has shape {list(store.shape(key))}", where=store.where(key))
    return float(store.read(key))


class Adapted:
    """A checkpoint's tensors with LoRA files merged into them; see `TensorSource`.

    Args:
        source: tensors under diffusers' names.
        loras: merged in this order.
    """

    def __init__(self, source: TensorSource, loras: Sequence[Lora]) -> None:
        self._source = source
        self._loras = tuple(loras)

    @property
    def changed(self) -> frozenset[str]:
        """Names of the tensors that are not the checkpoint's."""
        return frozenset(name for lora in self._loras for name in lora.changes)

    @property
    def source(self) -> TensorSource:
        """The tensors without any LoRA."""
        return self._source

    def names(self) -> Sequence[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def read(self, name: str) -> Tensor:
        """A tensor as the checkpoint has it; merged, in fp32, where a LoRA changes it.

        Raises:
            BadInput: the sum is beyond what bf16 holds, or see `TensorStore.read`.
        """
        tensor = self._source.read(name)
        for lora in self._loras:
            change = lora.changes.get(name)
            if change is not None:
                tensor = tensor.float() + change.of(tuple(tensor.shape))
        if name in self.changed and not torch.isfinite(tensor.to(torch.bfloat16)).all():
            raise BadInput(
                f"{name} with its LoRA is beyond bfloat16",
                where=", ".join(lora.record.file for lora in self._loras),
                fix="a smaller scale: --lora FILE:0.5",
            )
        return tensor
