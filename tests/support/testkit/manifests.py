"""Manifests for tests: sound ones, of which a test gives the fields that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastwan.config import SAMPLERS, DiTConfig, VideoShape
from fastwan.files import sha256_file
from fastwan.manifest import (
    MANIFEST,
    ONNX_MANIFEST,
    BuildRecord,
    FileRecord,
    Graph,
    Manifest,
    Model,
    OnnxManifest,
)


def model_of(**changes: Any) -> Model:
    """A transformer in NVFP4 for 9 frames of 96x160, but for `changes`."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "recipe": "nvfp4",
        "shape": VideoShape(height=96, width=160, num_frames=9),
        "dit": DiTConfig(),
        "decoder": None,
        "text_encoder": None,
        "default_sampler": "unipc",
    }
    return Model(**(fields | changes))


def exported_of(graphs: Mapping[str, Graph] | None = None, **changes: Any) -> OnnxManifest:
    """An ONNX bundle's manifest; `changes` are fields of the model."""
    return OnnxManifest(tool_version="0", model=model_of(**changes), graphs=dict(graphs or {}))


def manifest_of(**changes: Any) -> Manifest:
    """An engine bundle's manifest, without engines or files but for `changes`."""
    fields: dict[str, Any] = {
        "tool_version": "0",
        "versions": {},
        "target": "rtx5090",
        "backend": "tensorrt-rtx",
        "attention": "sage3",
        "fusion": "none",
        "sampler": "unipc",
        "samplers": (SAMPLERS["unipc"], SAMPLERS["dmd"]),
        "components": ("dit",),
        "onnx": exported_of(),
        "engines": {},
        "files": {},
        "build": BuildRecord(seconds=0, peak_rss_bytes=0),
    }
    return Manifest(**(fields | changes))


def records_of(root: Path) -> dict[str, FileRecord]:
    """Record of every file of a bundle, as they are now."""
    return {
        path.relative_to(root).as_posix(): FileRecord(
            sha256=sha256_file(path), bytes=path.stat().st_size
        )
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / MANIFEST
    }


def write_manifest(root: Path, **changes: Any) -> Manifest:
    """Write ``manifest.json`` for the files that lie in a folder; see `manifest_of`."""
    manifest = manifest_of(**({"files": records_of(root)} | changes))
    (root / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return manifest


def write_exported(root: Path, graphs: Mapping[str, Graph], **changes: Any) -> OnnxManifest:
    """Write ``export.json``; see `exported_of`."""
    manifest = exported_of(graphs, **changes)
    (root / ONNX_MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return manifest
