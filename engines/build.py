"""Build an engine bundle from an ONNX bundle and the graphs its engines are made of."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastwan import __version__
from fastwan.engines.builder import BuildRequest, BundleBuilder
from fastwan.engines.cache import EngineCache
from fastwan.engines.fallbacks import fallback_records, fallback_sources, graph_file
from fastwan.engines.layers import LayerRecord
from fastwan.engines.regions import region_records
from fastwan.engines.source import EngineSource
from fastwan.errors import BadInput
from fastwan.export.passes.cut_at_regions import Region as RegionGraph
from fastwan.files import confined_file, sha256_file
from fastwan.manifest import (
    LAYERS,
    MANIFEST,
    ONNX_MANIFEST,
    BuildRecord,
    FileRecord,
    Manifest,
    OnnxManifest,
)
from fastwan.manifest_reader import parse_manifest
from fastwan.outputs import OutputFolder
from fastwan.plugins.loader import LIBRARY_NAME
from fastwan.progress import Progress, Quiet, stage

ONNX_FOLDER = "onnx"
PLUGIN_FOLDER = "plugins"


def build_bundle(
    onnx_bundle: Path,
    output: Path | OutputFolder,
    sources: Sequence[EngineSource],
    request: BuildRequest,
    *,
    regions: Sequence[RegionGraph] = (),
    cache: EngineCache | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Build every source and write the engine bundle.

    Nothing is at `output`, and what was there is untouched, unless all of it succeeds. Engines
    that were finished before a build fails or is killed are in the cache for the next one.

    Args:
        onnx_bundle: folder with ``export.json``; kept in the bundle as the CPU reference.
        output: folder of the bundle; replaced if all of it is a bundle of this tool.
        sources: one for each engine, in the order in which they run.
        regions: what the runtime launches between the ``dit`` engines; engines of what lifted
            nodes replaced are built beside `sources`.
        cache: by default the user's, see `EngineCache`.

    Raises:
        BadInput: the ONNX bundle, a graph, an option or `output` is not what it has to be.
        EnvironmentLacks: the backend cannot build for the target here.
        VerificationFailed: an engine or a graph lost the format of a linear, or an engine says
            nothing about its layers.
        KeyboardInterrupt: cancelled.
    """
    progress = progress or Quiet()
    started = time.monotonic() if request.started is None else request.started
    fallbacks = fallback_sources(regions, onnx_bundle)
    sources = (*sources, *(each.engine for each in fallbacks))
    _check_names(sources)
    request.backend.check(request.target)
    exported = parse_manifest(onnx_bundle / ONNX_MANIFEST, OnnxManifest)
    _check_files(onnx_bundle, exported)
    place = OutputFolder(output, "bundle") if isinstance(output, Path) else output
    with place.make_recorded() as (folder, known):
        builder = BundleBuilder(request, folder, progress, cache, scratch=folder.parent)
        try:
            for component in dict.fromkeys(source.component for source in sources):
                builder.build([source for source in sources if source.component == component])
        finally:
            request.backend.close()
        begin = time.monotonic()
        for each in fallbacks:
            (folder / graph_file(each.engine)).write_bytes(each.engine.model)
            builder.add_file(graph_file(each.engine))
        beside = fallback_records(fallbacks, builder.engines)
        engines = {name: e for name, e in builder.engines.items() if name not in beside}
        write_layers(folder / LAYERS, builder.layers)
        builder.add_file(LAYERS)
        if request.plugin_library is not None:
            (folder / PLUGIN_FOLDER).mkdir()
            name = f"{PLUGIN_FOLDER}/{LIBRARY_NAME}"
            shutil.copyfile(request.plugin_library, folder / name)
            builder.add_file(name)
        names = _onnx_files(exported)
        size = sum((onnx_bundle / name).stat().st_size for name in names)
        with stage(progress, "hash ONNX files", size, "bytes"):
            # Hashed where they are: a move cannot be taken back, so it comes last.
            for name in names:
                path = onnx_bundle / name
                record = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)
                builder.files[f"{ONNX_FOLDER}/{name}"] = record
                progress.advance(record.bytes, name)
        stages = {**dict(request.stages), **builder.stages, "files": time.monotonic() - begin}
        manifest = Manifest(
            tool_version=__version__,
            versions={request.backend.name: request.backend.version()},
            target=request.target.name,
            backend=request.backend.name,
            attention=request.attention,
            fusion=request.fusion,
            weights=request.weights,
            sampler=request.samplers[0].name,
            samplers=request.samplers,
            components=request.components,
            onnx=exported,
            engines=engines,
            regions=region_records(regions, engines),
            fallbacks=beside,
            files=dict(sorted(builder.files.items())),
            build=BuildRecord(
                seconds=time.monotonic() - started,
                peak_rss_bytes=peak_rss_bytes(),
                stages=stages,
                cached=tuple(builder.cached),
            ),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _bring(onnx_bundle, folder / ONNX_FOLDER, names, move=request.move_onnx)
        known.update((name, (each.bytes, each.sha256)) for name, each in builder.files.items())
    return manifest


def peak_rss_bytes() -> int:
    """Largest resident memory of a process so far, by the operating system's account.

    Of this one and those it has waited for, each for itself; 0 where the system does not tell.
    """
    try:
        import resource
    except ImportError:
        return 0
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in whose)
    return peak if sys.platform == "darwin" else peak * 1024


def _check_names(sources: Sequence[EngineSource]) -> None:
    if not sources:
        raise BadInput("nothing to build", fix="name a component with --components")
    for name, count in Counter(source.name for source in sources).items():
        if count > 1 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise BadInput(f"engine name {name!r} is not a unique plain name")


def _onnx_files(exported: OnnxManifest) -> list[str]:
    names = {ONNX_MANIFEST, *exported.extra_files}
    for graph in exported.graphs.values():
        names.update((graph.file, *graph.data))
        if graph.cpu_file is not None:
            names.add(graph.cpu_file)
    return sorted(names)


def _check_files(onnx_bundle: Path, exported: OnnxManifest) -> None:
    for name in _onnx_files(exported):
        confined_file(onnx_bundle, name)


def write_layers(path: Path, layers: Mapping[str, Sequence[LayerRecord]]) -> None:
    """Write ``layers.json``: {engine: [record]}, one record a line."""
    with path.open("w", encoding="utf-8") as stream:
        blocks = []
        for name, records in layers.items():
            lines = ",\n".join(json.dumps(record.to_json()) for record in records)
            blocks.append(f"{json.dumps(name)}: [\n{lines}\n]")
        stream.write("{\n" + ",\n".join(blocks) + "\n}\n")


def _bring(source: Path, target: Path, names: Sequence[str], *, move: bool) -> None:
    for name in names:
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        if move and _renamed(source / name, destination):
            continue
        shutil.copyfile(source / name, destination)


def _renamed(source: Path, destination: Path) -> bool:
    """Move within a file system; False across two."""
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True
