"""What the build asks for, and how it explains a failure."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.plugins import build, library_file, loader


def fake_tools(folder: Path, cuda: str) -> None:
    """Tools that exist, and an nvcc of release `cuda`."""
    folder.mkdir()
    for name in ("g++", "cmake", "ninja"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {cuda}, V{cuda}.1'\n")
    nvcc.chmod(0o755)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which only the tools of a folder are found."""
    tools = tmp_path / "tools"
    monkeypatch.setenv("PATH", str(tools))
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "TENSORRT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    for name in loader.HEADER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build, "DEFAULT_NVCC", tmp_path / "none")
    monkeypatch.setattr(loader, "build_folder", lambda **_: tmp_path / "build")
    return tools


def test_nothing_is_missing_where_all_tools_are(bare: Path) -> None:
    fake_tools(bare, "12.8")
    assert build.missing_for_build() == []


def test_all_that_is_missing_is_named_at_once(bare: Path) -> None:
    names = [item.name for item in build.missing_for_build()]
    assert names == ["C++ compiler", "CMake", "ninja or make", "CUDA compiler"]
    with pytest.raises(EnvironmentLacks, match=r"CMake, ninja or make.*CUDA toolkit 12\.8"):
        build.build_plugin()


@pytest.mark.usefixtures("bare")
def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    with pytest.raises(EnvironmentLacks, match="cannot build"):
        build.build_plugin(tmp_path / "folder")
    with pytest.raises(BadInput, match="output cannot be written"):
        build.build_plugin(mine)
    assert mine.read_text() == "mine"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("content", "force", "replaced"),
    [
        (b"\x7fELF version=0.1.0 attention=120a prologue=80 tensorrt=none", False, True),
        (b"\x7fELF of somebody else", False, False),
        (b"version=0.1.0 attention=120a prologue=80 tensorrt=none", False, False),
        (b"\x7fELF of somebody else", True, True),
    ],
)
def test_only_a_plugin_library_is_replaced(
    tmp_path: Path, content: bytes, force: bool, replaced: bool
) -> None:
    there = tmp_path / loader.LIBRARY_NAME
    there.write_bytes(content)
    # What may be replaced comes as far as the tools, which are missing.
    error, message = (
        (EnvironmentLacks, "cannot build") if replaced else (BadInput, "not made by this tool")
    )
    with pytest.raises(error, match=message):
        build.build_plugin(tmp_path, force=force)
    assert there.read_bytes() == content


def test_kernel_headers_need_pip_or_a_place(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tools(bare, "12.8")
    monkeypatch.setattr(build, "has_pip", lambda: False)
    (missing,) = build.missing_for_build()
    assert missing.name == "kernel headers"
    for name in loader.HEADER_VARIABLES:
        monkeypatch.setenv(name, str(bare))
    assert build.missing_for_build() == []


def test_an_old_cuda_compiler_is_missing_with_its_version(bare: Path) -> None:
    fake_tools(bare, "12.6")
    (missing,) = build.missing_for_build()
    assert missing.fix.startswith("nvcc 12.6 is too old")


def test_tensorrt_headers_are_wanted_but_not_needed(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tools(bare, "13.0")
    include = tmp_path / "trt" / "include"
    include.mkdir(parents=True)
    (include / "NvInferRuntime.h").touch()
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "trt"))
    (headers,) = [item for item in build.requirements() if item.name == "TensorRT headers"]
    assert headers.found == str(include)
    assert not headers.needed


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "-- Detecting\nCMake Error at cmake/KernelHeaders.cmake:70 (message):\n"
            "  kernel headers could not be downloaded: no route\n\nCall Stack\n",
            "kernel headers could not be downloaded: no route",
        ),
        ("[1/2] nvcc\nattention.cu(3): error: no such type\nninja: stopped\n", "no such type"),
        ("[1/2] nvcc\nKilled\nninja: stopped\n", "Killed"),
        ("odd\n", "odd"),
    ],
)
def test_a_failed_step_is_explained_by_its_own_words(output: str, reason: str) -> None:
    assert reason in build._reason(output)


def test_a_failing_configure_leaves_no_library_and_names_the_log(bare: Path) -> None:
    fake_tools(bare, "13.0")
    cmake = bare / "cmake"
    cmake.write_text("#!/bin/sh\necho 'CMake Error at x (message):'\necho '  no headers'\nexit 1\n")
    with pytest.raises(EnvironmentLacks, match=r"no headers.*build\.log"):
        build.build_plugin(bare.parent / "out")
    assert not (bare.parent / "out").exists()


def test_the_sources_of_the_build_are_package_data(tmp_path: Path) -> None:
    root = loader.checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    copy = tmp_path / "source"
    shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns("build", ".*"))
    (copy / "README.md").touch()
    (copy / "LICENSE").touch()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    result = subprocess.run([*command, "-w", str(tmp_path), str(copy)], capture_output=True)
    if b"No module named" in result.stderr or b"Cannot import" in result.stderr:
        pytest.skip("setuptools is not installed here")
    assert result.returncode == 0, result.stderr.decode()
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "/plugins/" in name}
    source = build.SOURCE
    for path in (*source.glob("csrc/**/*"), *source.glob("cmake/*"), *source.glob("*.map")):
        if path.is_file():
            assert f"fastwan/plugins/{path.relative_to(source)}" in packed
    assert "fastwan/plugins/CMakeLists.txt" in packed


@pytest.mark.parametrize(
    "statement",
    [
        "set(_attention 90a)",
        "set(_attention 120a)",
        "set(_prologue 90)",
        "set(_prologue 80 90 ${_attention})",
        "add_compile_definitions(FASTWAN_EMULATED=1)",
        "target_compile_options(fastwan_attention PRIVATE "
        "--use_fast_math --expt-relaxed-constexpr --expt-extended-lambda)",
        "target_compile_options(fastwan_flashinfer PRIVATE "
        "--use_fast_math --expt-relaxed-constexpr --expt-extended-lambda)",
        "target_compile_options(fastwan_prologue PRIVATE -fmad=false)",
    ],
)
def test_how_the_attention_is_compiled(statement: str) -> None:
    # Figures of the attention do not name CMakeLists.txt among their sources: this stands in.
    cmake = " ".join((build.SOURCE / "CMakeLists.txt").read_text().split())
    assert cmake.count(statement) == 1
    options = [part.split(")")[0] for part in cmake.split("target_compile_options(")[1:]]
    targets = [part.split()[0] for part in options]
    assert (targets.count("fastwan_attention"), targets.count("fastwan_flashinfer")) == (1, 1)


@pytest.mark.slow
def test_the_whole_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = build.missing_for_build()
    if missing:
        pytest.skip("missing: " + ", ".join(item.name for item in missing))
    monkeypatch.setattr(loader, "build_folder", lambda **_: tmp_path / "build")
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    built = build.build_plugin(tmp_path / "out")
    assert built == tmp_path / "out" / loader.LIBRARY_NAME
    log = (tmp_path / "build" / "build.log").read_text()
    assert "warning" not in log.lower()
    info = loader.PluginLibrary(built).build_info
    assert info["sources"] == library_file.built_from(built) == library_file.sources_digest()
    if info["tensorrt"] == "none":
        assert "no TensorRT plugin" in log
