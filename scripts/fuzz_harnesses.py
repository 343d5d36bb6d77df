"""The parsers that `fuzz_parsers.py` feeds, each with a valid input."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file

from fastwan.cache_entry import RECORD, Record
from fastwan.engines.backend import BuiltEngine
from fastwan.engines.cache import EngineCache
from fastwan.engines.layer_json import layer_from_json
from fastwan.engines.layers import parse_layers
from fastwan.errors import BadInput
from fastwan.export.cache import ExportCache
from fastwan.export.checkpoint.configs import (
    read_dit_config,
    read_model_index,
    read_text_encoder_config,
)
from fastwan.export.checkpoint.safetensors_io import TensorFile
from fastwan.export.checkpoint.store import open_folder, open_store
from fastwan.hub.ids import parse_id
from fastwan.manifest import LAYERS, MANIFEST, Manifest, OnnxManifest, TensorSpec, parse_manifest
from fastwan.onnx_guard import checked_model
from fastwan.ownership import RECORD as OWNERSHIP
from fastwan.ownership import prove
from fastwan.plugins.loader import check_elf
from fastwan.quality.baseline import compare, read_baseline
from fastwan.quality.bench import bench
from fastwan.runtime.prompt_cache import PromptCache
from fastwan.runtime.request import Request
from fastwan.runtime.seal import is_sealed, seal
from fastwan.strict_json import parse_json

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


def harnesses(checkpoint: Path, bundle: Path, work: Path) -> dict[str, Harness]:
    """All of them by name; `work` is an empty folder that they write to."""

    def at_path(name: str, read: Callable[[Path], object]) -> Parse:
        def run(data: bytes) -> object:
            path = work / name
            path.write_bytes(data)
            return read(path)

        return run

    def config(name: str, read: Callable[[Path], object]) -> Harness:
        return Harness((checkpoint / name).read_bytes(), at_path(f"{Path(name).stem}.json", read))

    manifest = _small_manifest(json.loads((bundle / MANIFEST).read_bytes()))
    graph = min(bundle.rglob("*.onnx"), key=lambda path: path.stat().st_size)
    small = work / "small.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, small)
    state = work / "small.pth"
    torch.save({"a": torch.ones(2, 3)}, state)
    layer = min(json.loads((bundle / LAYERS).read_bytes()).values(), key=len)[:2]
    return {
        "safetensors": Harness(small.read_bytes(), at_path("a.safetensors", _tensors)),
        "sharded index": _index(small, work / "shards"),
        "state dict": Harness(state.read_bytes(), at_path("a.pth", open_store)),
        "strict JSON": Harness(
            (checkpoint / "model_index.json").read_bytes(), lambda data: parse_json(data, "input")
        ),
        "manifest": Harness(
            _json(manifest), at_path("m.json", lambda path: parse_manifest(path, Manifest))
        ),
        "ONNX manifest": Harness(
            _json(manifest["onnx"]),
            at_path("o.json", lambda path: parse_manifest(path, OnnxManifest)),
        ),
        "ONNX guard": Harness(
            graph.read_bytes(), lambda data: checked_model(data, graph.parent, "input")
        ),
        "transformer config": config("transformer/config.json", read_dit_config),
        "text encoder config": config("text_encoder/config.json", read_text_encoder_config),
        "model index": config("model_index.json", read_model_index),
        "layer log": Harness(
            LOG.encode(), lambda data: parse_layers([data.decode(errors="replace")], "dit", 2)
        ),
        "layer records": Harness(_json({"dit": layer}), _layer_records),
        "baseline": _baseline(bundle, at_path),
        "request": Harness(b"0", _request),
        "hub id": Harness(b"owner/name@main", lambda data: parse_id(data.decode(errors="replace"))),
        "ownership record": _ownership(work / "owned"),
        "video seal": _sealed(work / "sealed.mp4", at_path),
        "library": Harness(_ELF, at_path("lib.so", check_elf)),
        "export cache": _export_cache(work / "exports"),
        "engine cache": _engine_cache(work / "engines", work / "plan"),
        "prompt cache": _prompt_cache(work / "prompts"),
    }


_ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + bytes(44)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _small_manifest(whole: dict[str, Any]) -> dict[str, Any]:
    """A manifest of the same fields with two entries of every table, so that it is read quickly."""
    onnx = dict(whole["onnx"])
    graphs = {name: onnx["graphs"][name] for name in ("dit", "text_encoder")}
    for each in graphs.values():
        each["linears"] = each["linears"][:2]
    digests = dict(list(onnx["tensor_digests"].items())[:2])
    onnx |= {"graphs": graphs, "tensor_digests": digests}
    engines = {name: each for name, each in whole["engines"].items() if each["profiles"]}
    after = min(each["after"] for each in whole["regions"].values())
    engines |= {name: each for name, each in whole["engines"].items() if name == after}
    for each in engines.values():
        each["linears"] = each["linears"][:2]
    regions = {name: each for name, each in whole["regions"].items() if each["after"] == after}
    files = dict(list(whole["files"].items())[:2])
    return whole | {"onnx": onnx, "engines": engines, "regions": regions, "files": files}


def _tensors(path: Path) -> list[torch.Tensor]:
    file = TensorFile(path)
    return [file.read(name) for name in file.names]


def _index(shard: Path, folder: Path) -> Harness:
    folder.mkdir()
    (folder / "model-1.safetensors").write_bytes(shard.read_bytes())
    index = {"metadata": {"total_size": 32}, "weight_map": dict.fromkeys("ab", shard.name)}
    text = _json(index).replace(shard.name.encode(), b"model-1.safetensors")

    def read(data: bytes) -> object:
        (folder / "model.safetensors.index.json").write_bytes(data)
        return open_folder(folder, "model")

    return Harness(text, read)


def _layer_records(data: bytes) -> list[object]:
    loaded = parse_json(data, LAYERS)
    records = [each for each in loaded.values() if isinstance(each, list)]
    return [layer_from_json(each) for group in records for each in group]


def _baseline(bundle: Path, at_path: Callable[..., Parse]) -> Harness:
    report = bench(bundle, device="null", runs=1, warmup=0, prompt="a red fox")
    valid = report.to_json().encode()
    return Harness(
        valid, at_path("b.json", lambda path: compare(report, read_baseline(path), limit=1e-9))
    )


def _ownership(folder: Path) -> Harness:
    folder.mkdir()
    (folder / "mine").write_bytes(b"mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    listed = {"mine": {"bytes": 4, "sha256": digest}}
    record = {"tool": "fastwan-export", "kind": "frames", "files": listed}

    def read(data: bytes) -> None:
        (folder / OWNERSHIP).write_bytes(data)
        proof = prove(folder)
        if "mine" in proof.own and digest.encode() not in data:
            raise Wrong("a file counts as own without its hash")

    return Harness(_json(record), read)


def _sealed(path: Path, at_path: Callable[..., Parse]) -> Harness:
    path.write_bytes(b"frames" * 20)
    seal(path)
    valid = path.read_bytes()

    def check(damaged: Path) -> None:
        if is_sealed(damaged) != (damaged.read_bytes() == valid):
            raise Wrong("a seal holds for other bytes")

    return Harness(valid, at_path("v.mp4", check))


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


def _export_cache(root: Path) -> Harness:
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


def _engine_cache(root: Path, plan: Path) -> Harness:
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


def _prompt_cache(root: Path) -> Harness:
    encoder = _Encoder()
    PromptCache("encoder", root).get("a red fox", encoder)
    entry, valid, files = _entry(root)

    def read(data: bytes) -> None:
        _restore(entry, files | {RECORD: _signed(data, bool(len(data) % 2))})
        found = PromptCache("encoder", root, capacity=0).get("a red fox", encoder)
        if not np.array_equal(found, encoder.encode("")):
            raise Wrong("the prompt cache gave other embeddings")

    return Harness(valid, read)


_POOL: tuple[Any, ...] = (
    None, True, 0, 1, -1, 3, 2**64, -(2**63), 10**5000, 0.5, float("nan"), float("inf"), "", " ",
    "a red fox", "\ud800", "\0", "x" * 200_000, b"a red fox", ["a"], {}, object(), 1j, range(3),
    np.int64(3), np.float32("nan"), np.array(3), np.zeros((1, 4, 8)), torch.tensor(7),
    torch.ones(2), torch.Generator(), torch.device("cpu"), "np", "latent",
    "unipc", "uint8", Path("x"), int, len,
)  # fmt: skip
_FIELDS = (
    "prompt", "prompt_embeds", "height", "width", "num_frames", "max_sequence_length", "seed",
    "generator", "latents", "sampler", "output_type", "on_step",
)  # fmt: skip


def _request(data: bytes) -> object:
    """A request with values of any type; the input decides which."""
    rng = random.Random(data)
    given: dict[str, Any] = {"prompt": data.decode("utf-8", "surrogateescape") or "a red fox"}
    if data == b"0":
        return Request(**given)
    for name in rng.sample(_FIELDS, rng.randint(1, 4)):
        given[name] = rng.choice(_POOL)
    request = Request(**given)
    if not isinstance(request.seed, int | None) or cast("object", request.prompt) == "":
        raise BadInput("not held to its types")
    return request
