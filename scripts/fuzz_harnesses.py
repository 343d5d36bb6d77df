"""The parsers that `fuzz_parsers.py` feeds, each with a valid input."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fuzz_caches import LOG, Harness, Parse, Wrong, engine_cache, export_cache, prompt_cache
from safetensors.torch import save_file

from fastwan.config import COMPONENTS, SAMPLERS, DiTConfig
from fastwan.engines.layer_json import layer_from_json
from fastwan.engines.layers import parse_layers
from fastwan.errors import BadInput
from fastwan.export.checkpoint.configs import read_dit_config, read_text_encoder_config
from fastwan.export.checkpoint.folders import open_folder
from fastwan.export.checkpoint.identity import origin_claims, own_claims, tell_model
from fastwan.export.checkpoint.model_index import MODEL_INDEX, ModelIndex, read_model_index
from fastwan.export.checkpoint.names import expected_dit_tensors
from fastwan.export.checkpoint.safetensors_io import TensorFile
from fastwan.export.checkpoint.scheduler import SCHEDULER_CONFIG, read_scheduler
from fastwan.export.checkpoint.single_file import open_single_file
from fastwan.export.checkpoint.store import open_store
from fastwan.hub.ids import parse_id
from fastwan.manifest import LAYERS, MANIFEST, Manifest, OnnxManifest
from fastwan.manifest_reader import parse_manifest
from fastwan.onnx_guard import checked_model
from fastwan.ownership import RECORD as OWNERSHIP
from fastwan.ownership import prove
from fastwan.plugins.loader import check_elf
from fastwan.quality.baseline import compare, read_baseline
from fastwan.quality.bench import bench
from fastwan.runtime.request import Request
from fastwan.runtime.seal import is_sealed, seal
from fastwan.strict_json import parse_json


def harnesses(checkpoint: Path, bundle: Path, work: Path) -> dict[str, Harness]:
    """All of them by name; `work` is an empty folder that they write to."""

    def at_path(name: str, read: Callable[[Path], object]) -> Parse:
        def run(data: bytes) -> object:
            path = work / name
            path.write_bytes(data)
            return read(path)

        (work / name).parent.mkdir(exist_ok=True)

        return run

    def config(name: str, read: Callable[[Path], object]) -> Harness:
        return Harness((checkpoint / name).read_bytes(), at_path(name, read))

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
        "transformer config": config(
            "transformer/config.json", lambda path: read_dit_config(path, [])
        ),
        "text encoder config": config("text_encoder/config.json", read_text_encoder_config),
        "model index": config(
            MODEL_INDEX, lambda path: read_model_index(path.parent, COMPONENTS, [])
        ),
        "scheduler": config(SCHEDULER_CONFIG, _scheduler),
        "single file": _single_file(work),
        "model card": Harness(_CARD, at_path("README.md", _claims)),
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
        "export cache": export_cache(work / "exports"),
        "engine cache": engine_cache(work / "engines", work / "plan"),
        "prompt cache": prompt_cache(work / "prompts"),
    }


_ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + bytes(44)


_CARD = b"""---
license: apache-2.0
base_model:
- Wan-AI/Wan2.1-T2V-1.3B
---

# FastWan-QAD-1.3B

A model.
"""


def _claims(path: Path) -> object:
    model = "owner/FastWan-QAD-1.3B"
    claims = (*own_claims(model, path.parent), *origin_claims(path.parent, "", ()))
    return tell_model(claims[:1], claims, [])


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


def _scheduler(path: Path) -> object:
    scheduler = read_scheduler(path.parents[1], ModelIndex(), [])
    return scheduler and scheduler.sampler(SAMPLERS["unipc"], [])


def _single_file(work: Path) -> Harness:
    config = DiTConfig(num_layers=1, num_heads=1, ffn_dim=16, text_dim=16, freq_dim=16)
    path = work / "single.safetensors"
    shapes = expected_dit_tensors(config)
    save_file({name: torch.zeros(shape).bfloat16() for name, shape in shapes.items()}, path)
    # Its values decide nothing, so only the header is damaged.
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")

    def read(data: bytes) -> object:
        path.write_bytes(data + content[end:])
        return open_single_file(path, [])

    return Harness(content[:end], read)


def _index(shard: Path, folder: Path) -> Harness:
    folder.mkdir()
    (folder / "model-1.safetensors").write_bytes(shard.read_bytes())
    index = {"metadata": {"total_size": 32}, "weight_map": dict.fromkeys("ab", shard.name)}
    text = _json(index).replace(shard.name.encode(), b"model-1.safetensors")

    def read(data: bytes) -> object:
        (folder / "model.safetensors.index.json").write_bytes(data)
        return open_folder(folder, "model", [])

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
