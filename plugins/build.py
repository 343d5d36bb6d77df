"""Build ``libfastwan_plugins.so``: drives ``cmake -S plugins -B FOLDER``, explains failures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from fastwan.errors import EnvironmentLacks
from fastwan.install import has_pip
from fastwan.outputs import OutputFile
from fastwan.plugins import loader
from fastwan.plugins.library_file import SOURCE
from fastwan.progress import Progress, Quiet
from fastwan.schema import FigureReport, Measured

OLDEST_CUDA = (12, 8)
DEFAULT_NVCC = Path("/usr/local/cuda/bin/nvcc")

_STEP = re.compile(r"^\[\s*(\d+)(?:/(\d+)|%)\]")
_CMAKE_ERROR = re.compile(r"^CMake Error[^\n]*:\n\n?((?:  [^\n]*\n|\n)+)", re.MULTILINE)


class Requirement(NamedTuple):
    """Something the build needs, or could use.

    Attributes:
        name: what it is.
        found: version or path; empty when it is missing.
        needed: False for what only adds to the library.
        fix: how to get it.
    """

    name: str
    found: str
    needed: bool
    fix: str


class PluginReport(FigureReport):
    """What ``build-plugin`` compiled."""

    kind: Literal["build-plugin"] = "build-plugin"
    schema_version: Literal[1] = 1
    library: str
    """Path of the library."""
    bytes: Measured[int]
    build: dict[str, str]
    """What it was built from, see `fastwan.plugins.loader.PluginLibrary.build_info`."""


def _nvcc() -> Path | None:
    """The CUDA compiler, where CMakeLists.txt looks for it."""
    named = os.environ.get("CUDACXX")
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [named, shutil.which("nvcc"), *(f"{folder}/bin/nvcc" for folder in folders)]
    for candidate in (*candidates, DEFAULT_NVCC):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


def _cuda() -> Requirement:
    fix = "install the CUDA toolkit 12.8 or later, or set CUDACXX to its nvcc"
    nvcc = _nvcc()
    if nvcc is None:
        return Requirement("CUDA compiler", "", True, fix)
    result = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+)\.(\d+)", result.stdout)
    if release is None or (int(release[1]), int(release[2])) < OLDEST_CUDA:
        version = f"{release[1]}.{release[2]}" if release else "of unknown version"
        return Requirement("CUDA compiler", "", True, f"nvcc {version} is too old: {fix}")
    return Requirement("CUDA compiler", f"{release[1]}.{release[2]} ({nvcc})", True, fix)


def _tool(name: str, commands: tuple[str, ...], fix: str) -> Requirement:
    found = next((path for path in map(shutil.which, commands) if path), "")
    return Requirement(name, found, True, fix)


def _tensorrt_headers() -> Requirement:
    root = os.environ.get("TENSORRT_ROOT", "")
    folders = [f"{root}/include", root] if root else []
    folders += ["/usr/include", "/usr/local/include", "/usr/include/x86_64-linux-gnu"]
    folders += ["/usr/include/aarch64-linux-gnu"]
    found = next((folder for folder in folders if Path(folder, "NvInferRuntime.h").is_file()), "")
    return Requirement(
        "TensorRT headers",
        found,
        False,
        "set TENSORRT_ROOT to a folder that has include/NvInferRuntime.h; without them the library "
        "has no TensorRT plugin, and the tensorrt-rtx backend does not need one",
    )


def _kernel_headers() -> Requirement:
    """The attentions' published headers and CUTLASS: at hand, or pip to download them with."""
    named = loader.HEADER_VARIABLES
    downloaded = loader.build_folder() / "kernel_headers"
    if all(os.environ.get(name) for name in named):
        found = ", ".join(os.environ[name] for name in named)
    elif downloaded.is_dir():
        found = str(downloaded)
    else:
        found = "downloaded by pip, 92 MB" if has_pip() else ""
    fix = f"install pip for {sys.executable}, or set {', '.join(named)}"
    return Requirement("kernel headers", found, True, fix)


def requirements() -> list[Requirement]:
    """What the build needs or could use, in the order in which a user would install it."""
    make = _tool("ninja or make", ("ninja", "make"), "install ninja-build or make")
    return [
        _tool("C++ compiler", ("g++", "clang++", "c++"), "install g++ 11 or later"),
        _tool("CMake", ("cmake",), "install cmake 3.22 or later (pip install cmake)"),
        make,
        _cuda(),
        _kernel_headers(),
        _tensorrt_headers(),
    ]


def missing_for_build() -> list[Requirement]:
    """Requirements without which `build_plugin` cannot run; empty when it can."""
    return [item for item in requirements() if item.needed and not item.found]


def _reason(output: str) -> str:
    """The sentence of a failed step's output that says what went wrong."""
    said = _CMAKE_ERROR.search(output)
    if said:
        return said[1]
    lines = output.splitlines() or ["no output"]
    return next((line for line in lines if re.search(r"\berror\b|Killed", line)), lines[-1])


def _run(command: list[str], log: Path, progress: Progress, stage: str) -> None:
    """Run one step; its output goes to `log`, its step counter to `progress`.

    Raises:
        EnvironmentLacks: the step failed; the message is the tool's own where it has one.
    """
    progress.start(stage)
    lines: list[str] = []
    done = 0
    with (
        log.open("a") as stream,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            stream.write(line)
            lines.append(line)
            step = _STEP.match(line)
            if step:
                now = int(step[1])
                note = f"{now} of {step[2]}" if step[2] else f"{now} %"
                progress.advance(max(0, now - done), note)
                done = max(done, now)
    output = "".join(lines)
    if process.returncode:
        raise EnvironmentLacks(f"{stage} failed: {_reason(output)}", where=str(log))
    progress.finish()


def build_plugin(
    output: Path | None = None,
    *,
    emulated: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Build the library and load it once to see that it works.

    The build runs in `loader.build_folder` and is incremental. Headers of the attention
    kernels and of CUTLASS come from `loader.HEADER_VARIABLES`, an installed package, or a download
    from the package index with pinned hashes. Takes about 150 s of
    processor time and 6 GB of memory the first time (measured).

    Args:
        output: folder that gets a copy of the library; by default it stays where it was built.
        emulated: build the library that emulates the FP4 MMA on compute capability 9.0, in a
            folder of its own; it takes as long again.
        force: replace a file of the library's name in `output` whatever it is.

    Returns:
        Path of the library.

    Raises:
        BadInput: `output` cannot be written, or holds another file of the library's name.
        EnvironmentLacks: a tool is missing (all that are missing are named), or the build failed.
    """
    progress = progress or Quiet()
    name = loader.EMULATED_LIBRARY_NAME if emulated else loader.LIBRARY_NAME
    # What cannot be written is said before the work.
    copy = None if output is None else OutputFile(output / name, _is_ours, force=force)
    missing = missing_for_build()
    if missing:
        raise EnvironmentLacks(
            "cannot build the plugin library without " + ", ".join(item.name for item in missing),
            fix="; ".join(item.fix for item in missing),
        )
    folder = loader.build_folder(emulated=emulated)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    log.write_text("")
    configure = [
        "cmake",
        "-S",
        str(SOURCE),
        "-B",
        str(folder),
        f"-DFASTWAN_PYTHON={sys.executable}",
        f"-DFASTWAN_HEADER_DOWNLOADS={loader.build_folder() / 'kernel_headers'}",
        f"-DFASTWAN_EMULATED={'ON' if emulated else 'OFF'}",
    ]
    root = os.environ.get("TENSORRT_ROOT")
    if root:
        configure += ["-UFASTWAN_TENSORRT_INCLUDE", f"-DTENSORRT_ROOT={root}"]
    if not (folder / "CMakeCache.txt").is_file() and shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    _run(configure, log, progress, "configure plugin build")
    _run(
        ["cmake", "--build", str(folder), "--parallel", "2"], log, progress, "build plugin library"
    )
    library = folder / name
    loader.PluginLibrary(library, emulated=emulated)
    if copy is None:
        return library
    with copy.make() as temporary:
        shutil.copyfile(library, temporary)
    return copy.path


def plugin_report(library: Path) -> PluginReport:
    """What is known of a library that was built; it is loaded for that."""
    return PluginReport(
        library=str(library),
        bytes=library.stat().st_size,
        build=loader.PluginLibrary(library, emulated=None).build_info,
    )


def _is_ours(path: Path) -> bool:
    """Whether a file has the build info of a plugin library; nothing is loaded."""
    content = path.read_bytes()
    return content.startswith(b"\x7fELF") and all(word in content for word in _BUILD_INFO)


_BUILD_INFO = (b" attention=", b" prologue=", b" tensorrt=")
