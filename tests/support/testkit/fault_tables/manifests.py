"""Manifests, layer records and baselines with values that no build writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from testkit.fault_tables.bundles import BENCH, INSPECT, PLAY
from testkit.faults import Fault, Plant, both, edit, put, replace

MANIFEST = "b/manifest.json"
RECORDS = "b/layers.json"
COMPARE = f"{BENCH} --baseline before.json"


def _manifest(name: str, words: str, plant: Plant, command: str = INSPECT) -> Fault:
    return Fault(f"manifest: {name}", "M", command, 2, words, plant)


def _renamed(name: str) -> Plant:
    """An engine whose file has another name."""
    engine = "dit/segment_01.engine"
    return both(
        edit(MANIFEST, "engines.segment_01.file", name),
        replace(MANIFEST, f'"{engine}": {{', f'"{name}": {{'),
    )


def _sealed(plant: Plant) -> Plant:
    """Layer records that are changed, and their hash in the manifest with them."""

    def seal(folder: Path) -> None:
        content = (folder / RECORDS).read_bytes()
        tree = json.loads((folder / MANIFEST).read_bytes())
        digest = hashlib.sha256(content).hexdigest()
        tree["files"]["layers.json"] = {"sha256": digest, "bytes": len(content)}
        (folder / MANIFEST).write_text(json.dumps(tree))

    return both(plant, seal)


def _records(name: str, words: str, plant: Plant) -> Fault:
    return Fault(f"layer records: {name}", "M", INSPECT, 2, words, _sealed(plant))


def _baseline(folder: Path) -> None:
    """A report of ``bench`` of this bundle."""
    from fastwan.quality.bench import DEFAULT_PROMPT, bench

    report = bench(folder / "b", device="null", runs=1, warmup=0, prompt=DEFAULT_PROMPT)
    (folder / "before.json").write_text(report.to_json())


def _report(name: str, code: int, words: str, plant: Plant, kind: str = "N") -> Fault:
    return Fault(f"baseline: {name}", kind, COMPARE, code, words, plant, before=_baseline)


def _limit(value: str) -> Fault:
    return Fault(
        f"limit of {value}", "N", f"{COMPARE} --limit {value}", 2, "--limit",
        twin=f"{COMPARE} --limit 0.05", before=_baseline,
    )  # fmt: skip


FAULTS = (
    _manifest("scratch below zero", "scratch_bytes",
              edit(MANIFEST, "engines.*.scratch_bytes", -1)),
    _manifest("scratch of an exabyte", "scratch_bytes",
              edit(MANIFEST, "engines.*.scratch_bytes", 1 << 70)),
    _manifest("scratch in quotes", "scratch_bytes",
              edit(MANIFEST, "engines.*.scratch_bytes", "8")),
    _manifest("seconds that are NaN", "NaN",
              replace(MANIFEST, '"seconds": ', '"seconds": NaN, "second": ')),
    _manifest("seconds below zero", "seconds", edit(MANIFEST, "build.seconds", -1.0)),
    _manifest("seconds beyond a double", "number", edit(MANIFEST, "build.seconds", 10**300)),
    _manifest("a number of 400 digits", "number",
              replace(MANIFEST, '"schema_version": 4', f'"schema_version": {"3" * 400}')),
    _manifest("a key twice", "twice",
              replace(MANIFEST, '"target": ', '"target": "rtx5090", "target": ')),
    _manifest("brackets without end", r"manifest\.json", put(MANIFEST, "[" * 200_000)),
    _manifest("half a surrogate pair", "surrogate",
              replace(MANIFEST, '"target": "', '"target": "\\ud800')),
    _manifest("not UTF-8", r"manifest\.json", put(MANIFEST, b'{"\xff": 1}')),
    _manifest("a list", r"manifest\.json", put(MANIFEST, "[]")),
    _manifest("another version", "schema version 2", edit(MANIFEST, "schema_version", 2)),
    _manifest("a version that is true", "schema version", edit(MANIFEST, "schema_version", True)),
    _manifest("an unknown field", "more", edit(MANIFEST, "more", 1)),
    _manifest("no engines field", "engines", edit(MANIFEST, "engines", dict)),
    _manifest("no component", "components", edit(MANIFEST, "components", [])),
    _manifest("an unknown target", "rtx9999", edit(MANIFEST, "target", "rtx9999")),
    _manifest("an unknown attention", "magic", edit(MANIFEST, "attention", "magic")),
    _manifest("an unknown sampler", "magic", edit(MANIFEST, "sampler", "magic")),
    _manifest("a sampler of no steps", "steps", edit(MANIFEST, "samplers.0.steps", 0)),
    _manifest("a sampler of a million steps", "steps",
              edit(MANIFEST, "samplers.0.steps", 1_000_000)),
    _manifest("a shift of zero", "shift", edit(MANIFEST, "samplers.0.shift", 0.0)),
    _manifest("a height of 16,000,000", "height",
              edit(MANIFEST, "onnx.model.shape.height", 16_000_000), PLAY),
    _manifest("a height that is no multiple", "height",
              edit(MANIFEST, "onnx.model.shape.height", 97), PLAY),
    _manifest("layers without end", "num_layers",
              edit(MANIFEST, "onnx.model.dit.num_layers", 10**9)),
    _manifest("an eps of zero", "eps", edit(MANIFEST, "onnx.model.dit.eps", 0.0)),
    _manifest("a region of no heads", "num_heads|heads",
              edit(MANIFEST, "regions.*.nodes.0.attributes.num_heads", 0)),
    _manifest("a region without tokens", "num_tokens|tokens",
              edit(MANIFEST, "regions.*.nodes.0.attributes.num_tokens", 0)),
    _manifest("heads in words", "num_heads|heads",
              edit(MANIFEST, "regions.*.nodes.0.attributes.num_heads", "two")),
    _manifest("a region without its heads", "num_heads|heads",
              edit(MANIFEST, "regions.*.nodes.0.attributes.num_heads", dict)),
    _manifest("a region after nothing", "nothing provides",
              edit(MANIFEST, "regions.*.after", "nowhere")),
    _manifest("an axis below zero", "shape", edit(MANIFEST, "engines.*.inputs.0.shape.0", -5)),
    _manifest("an engine outside", "outside", _renamed("../../passwd")),
    _manifest("a file name of 5,000 characters", "missing", _renamed("x" * 5000)),
    _manifest("an engine that is not listed", "other.engine",
              edit(MANIFEST, "engines.*.file", "dit/other.engine"), BENCH),
    _manifest("a hash of 8 digits", "sha256", edit(MANIFEST, "files.*.sha256", "deadbeef")),
    _manifest("a size below zero", "bytes", edit(MANIFEST, "files.*.bytes", -1)),
    _records("not JSON", r"layers\.json", put(RECORDS, "no")),
    _records("a list", r"layers\.json", put(RECORDS, "[]")),
    _records("an engine without records", "segment_01", edit(RECORDS, "segment_01", dict)),
    _records("records that are a number", "segment_01", edit(RECORDS, "segment_01", 5)),
    _records("an axis beyond 31 bits", "layer record",
             edit(RECORDS, "segment_01.0.outputs", [
                 {"name": "x", "dtype": "BFloat16", "shape": [1 << 40]}])),
    _records("a profile that the engine lacks", "profile",
             edit(RECORDS, "segment_01.0.profile", 7)),
    _report("times are a list", 2, r"before\.json", edit("before.json", "enqueues", [1])),
    _report("a count that is NaN", 2, "NaN",
            replace("before.json", '"enqueues": ', '"enqueues": NaN, "enqueue": ')),
    _report("a count below zero", 2, "enqueues", edit("before.json", "enqueues", -1)),
    _report("a count that is gone", 2, r"before\.json", edit("before.json", "enqueues", dict)),
    _report("a report of another command", 2, "no report of bench",
            edit("before.json", "kind", "inspect")),
    _report("of another target", 2, "target", edit("before.json", "bundle.target", "gb10")),
    dataclasses.replace(
        _report("fewer launches before", 5, "enqueues", edit("before.json", "enqueues", 1)),
        tells='"kind": "bench"',
    ),
    _report("not there", 2, r"before\.json", lambda folder: (folder / "before.json").unlink()),
    _report("empty", 2, r"before\.json", put("before.json", "")),
    *map(_limit, ("nan", "-3", "inf", "1e6")),
)  # fmt: skip
