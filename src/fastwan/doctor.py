"""``doctor``: what this machine can do, and what to install for the rest.

It looks, it never builds, and a missing or broken piece is a finding, never an exception. Packages
are really imported, for one that is installed and does not load is worth finding; those that take
seconds only with ``--load``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastwan.config import MODELS, TARGETS
from fastwan.errors import FastWanError
from fastwan.install import extra_of, how_to_install
from fastwan.schema import Report
from fastwan.screen import Rows

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

Status = Literal["ok", "missing", "optional"]
Group = Literal["package", "gpu", "plugin", "storage", "ability"]

OLDEST_PYTHON = (3, 11)
NEEDED_DISK_BYTES = 15_000_000_000
"""Free disk that a full-size build wants: checkpoint, ONNX bundle, engines and their cache."""

_LIBRARY = "plugin library"
_EMULATED_LIBRARY = "emulated plugin library"
_EMULATED_CAPABILITY = 90
_GPU_VIDEO = "make a video on the GPU"
_PLUGIN_BUILD = "build the attention plugin"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: what it belongs to; an ``ability`` sums up the findings it rests on.
        name: what was looked for, unique among the findings.
        status: ``missing`` takes an ability away, ``optional`` is missing and only adds to one.
        detail: version, path, or what is wrong.
        fix: how to get it; empty when `status` is ok.
    """

    group: Group
    name: str
    status: Status
    detail: str
    fix: str = ""


class DoctorReport(Report):
    """What ``doctor`` found."""

    kind: Literal["doctor"] = "doctor"
    schema_version: Literal[1] = 1
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Package:
    name: str
    module: str
    distribution: str
    status_without: Status = "missing"
    hint: str = ""
    slow: bool = False

    @property
    def fix(self) -> str:
        return f"{how_to_install(extra_of(self.module))}{self.hint}"


_PACKAGES = (
    _Package("torch", "torch", "torch", slow=True),
    _Package("ModelOpt", "modelopt.torch.quantization", "nvidia-modelopt", slow=True),
    _Package("onnx", "onnx", "onnx"),
    _Package("onnxscript", "onnxscript", "onnxscript", slow=True),
    _Package("ONNX Runtime", "onnxruntime", "onnxruntime"),
    _Package("tokenizers", "tokenizers", "tokenizers"),
    _Package("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx-cu13"),
    _Package("TensorRT", "tensorrt", "tensorrt-cu13", "optional", ", with a GPU"),
    _Package("PyAV", "av", "av", "optional", "; PNG frames need none"),
)
_CUDA_BINDINGS = _Package("cuda-bindings", "cuda.bindings.runtime", "cuda-bindings")
"""Looked for where a CUDA device is visible: elsewhere nothing would use it."""

_EXPORT = ("Python", "torch", "ModelOpt", "onnx", "onnxscript")
_CPU_RUN = ("Python", "ONNX Runtime", "tokenizers")
_GPU_RUN = ("Python", "cuda-bindings", "TensorRT-RTX", "tokenizers")


def diagnose(load: bool = False) -> list[Finding]:
    """Look at everything; parts first, then the abilities that follow from them.

    Args:
        load: import the packages that take seconds, too.
    """
    parts = [_python(), *(_package(package, load) for package in _PACKAGES)]
    parts += _guard("gpu", "CUDA device", _devices)
    parts += _guard("plugin", "plugin build", _plugin_build)
    for name, emulated in ((_LIBRARY, False), (_EMULATED_LIBRARY, True)):
        parts += _guard("plugin", name, partial(_plugin_library, name, emulated))
    parts += _guard("storage", "cache", _storage)
    return parts + _abilities({part.name: part for part in parts})


def _guard(group: Group, name: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Findings of `look`; one that says what went wrong where `look` itself cannot run."""
    try:
        return list(look())
    except FastWanError as error:
        return [Finding(group, name, "missing", error.what, error.fix)]
    except Exception as error:
        what = f"could not be looked at: {_one_line(error)}"
        return [Finding(group, name, "missing", what, how_to_install())]


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        return Finding("package", "Python", "ok", f"{version} ({sys.executable})")
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return Finding("package", "Python", "missing", version, f"install Python {wanted} or newer")


def _package(package: _Package, load: bool = True) -> Finding:
    if package.slow and not load:
        return _installed(package)
    try:
        # ModelOpt prints to stdout, where --json has its one object.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            module = importlib.import_module(package.module)
    except Exception as error:
        # Of a dotted module any part may be what is not there.
        absent = isinstance(error, ModuleNotFoundError) and f"{package.module}.".startswith(
            f"{error.name}."
        )
        detail = "not installed" if absent else f"does not load: {_one_line(error)}"
        return Finding("package", package.name, package.status_without, detail, package.fix)
    try:
        version = metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        version = str(getattr(module, "__version__", "of unknown version"))
    return Finding("package", package.name, "ok", version)


def _installed(package: _Package) -> Finding:
    """Whether a package is there, without importing it."""
    try:
        version = metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        return Finding(
            "package", package.name, package.status_without, "not installed", package.fix
        )
    return Finding("package", package.name, "ok", f"{version}, not loaded (see --load)")


def _devices() -> Iterable[Finding]:
    from fastwan.cuda_driver import compute_capability, cuda_device_count, driver_fault

    if fault := driver_fault():
        yield Finding(
            "gpu", "CUDA device", "missing", fault, "install NVIDIA's driver 580 or newer"
        )
        return
    count = cuda_device_count()
    if not count:
        fix = "install NVIDIA's driver and check CUDA_VISIBLE_DEVICES; building needs no GPU"
        yield Finding("gpu", "CUDA device", "optional", "no driver, or no device visible", fix)
        return
    yield Finding("gpu", "CUDA device", "ok", f"{count} visible")
    yield _package(_CUDA_BINDINGS)

    capability = compute_capability()
    served = [target.gpu for target in TARGETS.values() if target.compute_capability == capability]
    name = "compute capability"
    if served:
        yield Finding("gpu", name, "ok", f"{capability}: {', '.join(served)}")
    else:
        fix = "; ".join(f"{model.name} wants {_gpus(model.targets)}" for model in MODELS.values())
        yield Finding("gpu", name, "optional", f"{capability}, no target", fix)


def _gpus(targets: Iterable[str]) -> str:
    rows = (TARGETS[name] for name in targets)
    return ", ".join(f"{target.gpu} ({target.compute_capability})" for target in rows)


def _plugin_build() -> Iterable[Finding]:
    from fastwan.plugins.build import requirements
    from fastwan.plugins.loader import packaged_library

    needed = packaged_library() is None
    for item in requirements():
        lacking: Status = "missing" if item.needed and needed else "optional"
        status: Status = "ok" if item.found else lacking
        detail = item.found or "not found"
        yield Finding("plugin", item.name, status, detail, "" if item.found else item.fix)


def _plugin_library(name: str, emulated: bool) -> Iterable[Finding]:
    from fastwan.cuda_driver import compute_capability
    from fastwan.errors import EnvironmentLacks
    from fastwan.plugins.loader import INTERFACE_VERSION, PluginLibrary, find_library, origin

    try:
        path = find_library(emulated=emulated)
    except EnvironmentLacks as error:
        # The emulated library is of no use to a machine whose GPU it does not serve.
        if not emulated or compute_capability() == _EMULATED_CAPABILITY:
            yield Finding("plugin", name, "optional", "not built", error.fix)
        return
    library = PluginLibrary(path, emulated=emulated)
    serves = ", ".join(library.compute_capabilities)
    info = {key: value for key, value in library.build_info.items() if key != "sources"}
    words = " ".join(f"{key}={value}" for key, value in info.items())
    detail = (
        f"{origin(path)}, serves compute capability {serves}; interface {INTERFACE_VERSION}, "
        f"{words} ({path})"
    )
    yield Finding("plugin", name, "ok", detail)


def _storage() -> Iterable[Finding]:
    from fastwan.cache_folder import DIRECTORY_VARIABLE, cache_root, max_cache_bytes

    folder, limit = cache_root(), max_cache_bytes()
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    fix = f"set {DIRECTORY_VARIABLE} to a folder that can be written"
    if not there.is_dir() or not os.access(there, os.W_OK):
        detail = f"{folder} cannot be written"
        yield Finding("storage", "cache", "missing", detail, fix)
    else:
        used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        detail = f"{used / 1e6:,.0f} MB of {limit / 1e6:,.0f} MB in {folder}"
        yield Finding("storage", "cache", "ok", detail)
    for name, place in (("disk of the cache", there), ("disk here", Path.cwd())):
        free = shutil.disk_usage(place).free
        detail = f"{free / 1e9:,.0f} GB free"
        if free >= NEEDED_DISK_BYTES:
            yield Finding("storage", name, "ok", detail)
        else:
            fix = f"the full size wants {NEEDED_DISK_BYTES / 1e9:.0f} GB"
            yield Finding("storage", name, "optional", detail, fix)


def _abilities(parts: dict[str, Finding]) -> list[Finding]:
    export = _resting_on("export a checkpoint to ONNX", parts, _EXPORT)
    engines = _guard("ability", _engines_name("tensorrt-rtx"), lambda: _builds("tensorrt-rtx"))
    on_gpu = _guard("ability", _engines_name("tensorrt"), lambda: _builds("tensorrt"))
    cpu = _resting_on("make a video on the CPU", parts, _CPU_RUN, "the reference: slow, small")
    gpu = _guard("ability", _GPU_VIDEO, lambda: _gpu_run(parts))
    plugin = _guard("ability", _PLUGIN_BUILD, lambda: [_plugin_ability(parts)])
    return [export, *engines, *on_gpu, cpu, *gpu, *plugin]


def _plugin_ability(parts: dict[str, Finding]) -> Finding:
    from fastwan.plugins.build import missing_for_build
    from fastwan.plugins.loader import packaged_library

    summed = _summed(_PLUGIN_BUILD, [parts[item.name] for item in missing_for_build()])
    if summed.status == "ok" or packaged_library() is None:
        return summed
    return replace(summed, status="optional", detail=f"{summed.detail}; the wheel has the library")


def _resting_on(
    name: str, parts: dict[str, Finding], wanted: tuple[str, ...], detail: str = ""
) -> Finding:
    return _summed(name, [parts[each] for each in wanted if parts[each].status != "ok"], detail)


def _summed(name: str, lacking: list[Finding], detail: str = "") -> Finding:
    if not lacking:
        return Finding("ability", name, "ok", detail)
    without = "without " + ", ".join(part.name for part in lacking)
    fixes = "; ".join(dict.fromkeys(part.fix for part in lacking))
    return Finding("ability", name, "missing", without, fixes)


def _engines_name(backend: str) -> str:
    return f"build engines with {backend}"


def _builds(name: str) -> Iterable[Finding]:
    """Asks the backend itself, exactly as ``build-engine`` will."""
    from fastwan.engines.backend import load_backend

    backend = load_backend(name)
    good: list[str] = []
    first: FastWanError | None = None
    for target in TARGETS.values():
        try:
            backend.check(target)
        except FastWanError as error:
            first = first or error
        else:
            good.append(target.name)
    if good:
        yield Finding("ability", _engines_name(name), "ok", "for " + ", ".join(good))
    elif first is not None:
        status: Status = "missing" if name == "tensorrt-rtx" else "optional"
        yield Finding("ability", _engines_name(name), status, first.what, first.fix)


def _gpu_run(parts: dict[str, Finding]) -> Iterable[Finding]:
    from fastwan.runtime.device.choice import resolve_device

    try:
        resolve_device("cuda")
    except FastWanError as error:
        yield Finding("ability", _GPU_VIDEO, "missing", error.what, error.fix)
    else:
        yield _resting_on(_GPU_VIDEO, parts, _GPU_RUN)


_TITLES: dict[Group, str] = {
    "package": "Packages",
    "gpu": "GPU",
    "plugin": "Attention plugin",
    "storage": "Storage",
    "ability": "This machine can",
}
_STYLES: dict[Status, str] = {"ok": "green", "missing": "red", "optional": "yellow"}


def render(findings: list[Finding]) -> RenderableType:
    """The findings as tables for a terminal, abilities last."""
    from rich.console import Group as Blocks
    from rich.table import Table
    from rich.text import Text

    blocks: list[RenderableType] = []
    for group, title in _TITLES.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for finding in (each for each in findings if each.group == group):
            what = finding.detail + (f"\n-> {finding.fix}" if finding.fix else "")
            status = Text(finding.status, style=_STYLES[finding.status])
            table.add_row(status, Text(finding.name), Text(what))
        if table.row_count:
            lines = [Text(f"{title}:"), *(_line(each) for each in findings if each.group == group)]
            blocks.append(Rows(table, lines))
    return Blocks(*blocks)


def _line(finding: Finding) -> Text:
    """A finding as one line."""
    from rich.text import Text

    detail = f": {finding.detail}" if finding.detail else ""
    fix = f" -> {finding.fix}" if finding.fix else ""
    return Text.assemble((finding.status, _STYLES[finding.status]), f" {finding.name}{detail}{fix}")
