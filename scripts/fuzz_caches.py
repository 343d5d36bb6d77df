"""Cache entries that `fuzz_parsers.py` damages: they may miss, but not give other content."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from fastwan.cache_entry import RECORD, Record
from fastwan.engines.backend import BuiltEngine
from fastwan.engines.cache import EngineCache
from fastwan.engines.layers import parse_layers
from fastwan.export.cache import ExportCache
from fastwan.manifest import TensorSpec
from fastwan.runtime.prompt_cache import PromptCache

Parse = Callable[[bytes], object]

LOG = (
    "Layers:\nName: a/MatMul_myl0_1 [profile 1], LayerType: gemm, Inputs: [ { Name: {x, y}, "
    "Dimensions: [1,-1,256], Strides: [1,1], StrideOrder: [1,0], Datatype: FP4E2M1, Format: "
    "(Arbitrary) Format } ], Constants: [], Outputs: [ { Name: out [0], Dimensions: [1,128,512], "
    "Strides: [1,1], StrideOrder: [1,0], Datatype: BFloat16, Format: (Arbitrary) Format }], "
    "TacticName: __myelin, StreamId: 0, Metadata: [ONNX Layer: a[0]/MatMul]\x1f[ONNX Layer: c]__g\n"
    "Name: b_myl0_2, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , "
    "StreamId: 0, Metadata: \n\nI/O Tensors:\n"
)
_KEY = "ab" * 32
_SHAPE = (1, 4, 8)


class Wrong(Exception):
    """A cache gave what was not stored."""


@dataclass(frozen=True)
class Harness:
    """A parser, and an input that it takes."""

    valid: bytes
    parse: Parse


def _signed(data: bytes, sign: bool) -> bytes:
    """A record, half of the times with its hash made right, so that what is behind it is met."""
    try:
        return Record(**json.loads(data)["record"]).encoded() if sign else data
    except (ValueError, TypeError, KeyError, RecursionError):
        return data


def _entry(folder: Path) -> tuple[Path, bytes, dict[str, bytes]]:
    """Folder, record and other files of the only entry of a cache."""
    (record,) = folder.rglob(RECORD)
    files = {each.name: each.read_bytes() for each in record.parent.iterdir() if each != record}
    return record.parent, record.read_bytes(), files


def _restore(entry: Path, files: dict[str, bytes]) -> None:
    """Put an entry back, which a miss has removed."""
    entry.mkdir(exist_ok=True)
    for name, content in files.items():
        (entry / name).write_bytes(content)


def _expect_hit(found: object, expected: bool) -> None:
    if expected and found is None:
        raise Wrong("the cache misses what was stored")


def export_cache(root: Path) -> Harness:
    cache = ExportCache(root, max_bytes=1 << 30)
    stored = {"weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "s": torch.ones(1)}
    cache.put_tensors(_KEY, stored, {"kind": "linear"})
    entry, valid, files = _entry(root)

    def read(data: bytes) -> None:
        sign = bool(len(data) % 2)
        _restore(entry, files | {RECORD: _signed(data, sign)})
        found = cache.tensors(_KEY)
        _expect_hit(found, data == valid)
        if sign or found is None:
            return  # what is signed anew was never stored by this tool
        same = found[0].keys() == stored.keys() and all(
            torch.equal(found[0][name], tensor) for name, tensor in stored.items()
        )
        if not same:
            raise Wrong("the export cache gave other tensors")

    return Harness(valid, read)


def engine_cache(root: Path, plan: Path) -> Harness:
    cache = EngineCache(root, max_bytes=1 << 30)
    specs = (TensorSpec(name="x", dtype="bfloat16", shape=(1, "n", 8)),)
    layers = parse_layers([LOG], "dit", 2)
    built = BuiltEngine(
        plan=memoryview(b"plan"), layers=layers, scratch_bytes=8, inputs=specs, outputs=specs
    )
    cache.put(_KEY, built)
    entry, valid, files = _entry(root)

    def read(data: bytes) -> None:
        sign = bool(len(data) % 2)
        _restore(entry, files | {RECORD: _signed(data, sign)})
        found = cache.copy(_KEY, plan)
        _expect_hit(found, data == valid)
        if found is None and plan.exists():
            raise Wrong("a plan lies there after a miss")
        if found is not None and not sign and (found.layers, found.inputs) != (layers, specs):
            raise Wrong("the engine cache gave another engine")
        plan.unlink(missing_ok=True)

    return Harness(valid, read)


class _Encoder:
    shape = _SHAPE
    dtype = np.dtype(ml_dtypes.bfloat16)

    def encode(self, prompt: str) -> np.ndarray[Any, Any]:
        return np.full(self.shape, 0.5, self.dtype)


def prompt_cache(root: Path) -> Harness:
    encoder = _Encoder()
    PromptCache("encoder", root).get("a red fox", encoder)
    entry, valid, files = _entry(root)

    def read(data: bytes) -> None:
        _restore(entry, files | {RECORD: _signed(data, bool(len(data) % 2))})
        found = PromptCache("encoder", root, capacity=0).get("a red fox", encoder)
        if not np.array_equal(found, encoder.encode("")):
            raise Wrong("the prompt cache gave other embeddings")

    return Harness(valid, read)
