"""What the loader refuses, in words, and what the C interface refuses; no GPU needed."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.plugins import build, library_file, loader
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes

REGION = SageAttention3(1, 32768, SageAttributes(12, 32760))


def compile_library(folder: Path, source: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    path = folder / loader.LIBRARY_NAME
    subprocess.run(
        [compiler, "-x", "c", "-", "-shared", "-fPIC", "-o", str(path)],
        input=source,
        text=True,
        check=True,
    )
    return path


def complete_library(interface: int, version: str = loader.LIBRARY_VERSION, info: str = "") -> str:
    """C source of a library that has every function and does nothing."""
    names = ("device_supported", "region_workspace_bytes", "sage_layout_of", "region_enqueue")
    names += ("sage_prologue_enqueue", "sage_attention_enqueue")
    stubs = "".join(f"int fastwan_{name}(void) {{ return 0; }}\n" for name in names)
    return (
        f"int fastwan_interface_version(void) {{ return {interface}; }}\n{stubs}"
        'const char* fastwan_last_error(void) { return "none"; }\n'
        "const char* fastwan_build_info(void) "
        f'{{ return "version={version} tensorrt=none{info}"; }}\n'
    )


def test_a_library_of_this_interface_loads(tmp_path: Path) -> None:
    path = compile_library(tmp_path, complete_library(loader.INTERFACE_VERSION))
    assert PluginLibrary(path).build_info == {
        "version": loader.LIBRARY_VERSION,
        "tensorrt": "none",
    }


def test_a_library_of_another_interface_is_refused(tmp_path: Path) -> None:
    path = compile_library(tmp_path, complete_library(loader.INTERFACE_VERSION + 1))
    with pytest.raises(BadInput, match=r"has interface 3, this package needs 2.*build-plugin"):
        PluginLibrary(path)


def test_a_library_that_emulates_is_taken_only_where_it_is_asked_for(tmp_path: Path) -> None:
    source = complete_library(loader.INTERFACE_VERSION, info=" attention=90a emulated=yes")
    emulated = compile_library(tmp_path, source)
    with pytest.raises(BadInput, match="emulates FP4; asked for is one that runs FP4 on the GPU"):
        PluginLibrary(emulated)
    for wanted in (True, None):
        library = PluginLibrary(emulated, emulated=wanted)
        assert library.emulated
        assert library.compute_capabilities == ("9.0",)
    (tmp_path / "fp4").mkdir()
    source = complete_library(loader.INTERFACE_VERSION, info=" attention=120a,121a emulated=no")
    real = compile_library(tmp_path / "fp4", source)
    with pytest.raises(BadInput, match="runs FP4 on the GPU; asked for is one that emulates"):
        PluginLibrary(real, emulated=True)
    assert not PluginLibrary(real).emulated
    assert PluginLibrary(real).compute_capabilities == ("12.0", "12.1")


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    path = compile_library(tmp_path, complete_library(loader.INTERFACE_VERSION, "0.0.9"))
    with pytest.raises(BadInput, match=r"is version 0\.0\.9, this package needs 0\.1\.0"):
        PluginLibrary(path)


def test_the_build_makes_the_version_that_the_loader_wants() -> None:
    cmake = (build.SOURCE / "CMakeLists.txt").read_text()
    header = (build.SOURCE / "csrc" / "fastwan_plugins.h").read_text()
    assert f"project(fastwan_plugins VERSION {loader.LIBRARY_VERSION} " in cmake
    assert f"#define FASTWAN_INTERFACE_VERSION {loader.INTERFACE_VERSION}\n" in header


def test_a_library_of_something_else_is_refused(tmp_path: Path) -> None:
    path = compile_library(tmp_path, "int unrelated(void) { return 1; }\n")
    with pytest.raises(BadInput, match="not a fastwan plugin library"):
        PluginLibrary(path)


@pytest.mark.parametrize("keep", [0, 40, 64, 4096, -1])
def test_a_truncated_library_is_refused(tmp_path: Path, keep: int) -> None:
    path = compile_library(tmp_path, complete_library(loader.INTERFACE_VERSION))
    whole = path.read_bytes()
    PluginLibrary(path)
    cut = tmp_path / "cut.so"
    cut.write_bytes(whole[:keep])
    with pytest.raises(BadInput, match=r"truncated|not a 64-bit ELF"):
        PluginLibrary(cut)


def test_a_library_for_another_processor_is_refused(tmp_path: Path) -> None:
    path = compile_library(tmp_path, complete_library(loader.INTERFACE_VERSION))
    content = bytearray(path.read_bytes())
    content[18:20] = (243).to_bytes(2, "little")  # RISC-V
    path.write_bytes(content)
    with pytest.raises(BadInput, match="another processor"):
        PluginLibrary(path)


def test_text_and_objects_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("#!/bin/sh\n" * 20)
    with pytest.raises(BadInput, match="not a 64-bit ELF library"):
        PluginLibrary(text)
    path = compile_library(tmp_path, complete_library(loader.INTERFACE_VERSION))
    content = bytearray(path.read_bytes())
    content[16:18] = (1).to_bytes(2, "little")  # a relocatable object
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not a shared library"):
        PluginLibrary(path)


def test_a_missing_library_says_how_to_build_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(loader.LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(EnvironmentLacks, match=r"none\.so.*build-plugin"):
        loader.find_library()


def test_the_library_is_found_by_variable_and_in_the_build_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, built = tmp_path / "named.so", tmp_path / loader.LIBRARY_NAME
    named.touch()
    built.touch()
    monkeypatch.setattr(loader, "build_folder", lambda **_: tmp_path)
    monkeypatch.setenv(loader.LIBRARY_VARIABLE, str(named))
    assert loader.find_library() == named
    monkeypatch.delenv(loader.LIBRARY_VARIABLE)
    assert loader.find_library() == built


@pytest.mark.parametrize("built_from", ["these", "other", "nothing"])
def test_a_built_library_counts_beside_the_wheels_if_it_is_of_these_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_from: str
) -> None:
    folder, packaged = tmp_path / "cache", tmp_path / "package" / loader.LIBRARY_NAME
    for path in (folder / loader.LIBRARY_NAME, packaged):
        path.parent.mkdir()
        path.write_bytes(b"\x7fELF sources=" + b"0" * 64)
    built = folder / loader.LIBRARY_NAME
    if built_from == "these":
        built.write_bytes(b"\x7fELF sources=" + library_file.sources_digest().encode())
    elif built_from == "nothing":
        built.unlink()
    monkeypatch.delenv(loader.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(loader, "build_folder", lambda **_: folder)
    monkeypatch.setattr(loader, "SOURCE", packaged.parent)
    assert loader.find_library() == (built if built_from == "these" else packaged)
    monkeypatch.setenv(loader.LIBRARY_VARIABLE, str(packaged))
    assert loader.find_library() == packaged
    monkeypatch.delenv(loader.LIBRARY_VARIABLE)
    packaged.unlink()
    if built_from == "nothing":
        with pytest.raises(EnvironmentLacks):
            loader.find_library()
    else:
        assert loader.find_library() == built


def test_where_a_library_comes_from_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / loader.LIBRARY_NAME
    path.write_bytes(b" sources=" + library_file.sources_digest().encode())
    monkeypatch.delenv(loader.LIBRARY_VARIABLE, raising=False)
    assert loader.origin(path) == "built here"
    monkeypatch.setenv(loader.LIBRARY_VARIABLE, str(path))
    assert loader.origin(path) == "named in the environment"
    path.write_bytes(b" sources=" + b"0" * 64)
    assert loader.origin(path) == "named in the environment, of other sources than this copy's"
    monkeypatch.setattr(loader, "SOURCE", tmp_path)
    assert loader.origin(path) == "from the wheel"


def test_every_source_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "plugins"
    shutil.copytree(library_file.SOURCE, copy, ignore=shutil.ignore_patterns("*.py", "*.so"))
    monkeypatch.setattr(library_file, "SOURCE", copy)
    digest = library_file.sources_digest.__wrapped__
    before = digest()
    assert before == library_file.sources_digest()
    (copy / "csrc" / "notes.orig").touch()
    assert digest() == before
    for name in ("CMakeLists.txt", "exports.map", "csrc/glue.cu", "csrc/shims/ATen/new.h"):
        (copy / name).open("a").write("\n")
        assert before != (before := digest()), name


def test_workspace_is_the_operands_and_little_else(each_library: PluginLibrary) -> None:
    library = each_library
    rows = 12 * 32768
    operands = 3 * rows * (64 + 8)
    zeros = rows * 4
    assert zeros < 1.6e6
    needed = operands + zeros + REGION.split_bytes
    assert needed <= library.workspace_bytes(REGION) < needed + 8192
    layout = library.layout(REGION)
    assert layout.padded_tokens == 32768
    assert layout.total == library.workspace_bytes(REGION) == REGION.workspace_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "must be positive"),
        ({"num_tokens": 0}, "num_tokens 0"),
        ({"num_tokens": 32769}, "num_tokens 32769 is not within 1 .. length 32768"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"num_heads": 41}, "num_heads 41"),
        ({"eps": -1.0}, "eps"),
        ({"softmax_scale": 0.0}, "softmax_scale"),
        ({"softmax_scale": float("nan")}, "softmax_scale"),
        ({"batch": 100_000}, "too large"),
        ({"processors": -1}, "processors -1 must not be negative"),
    ],
)
def test_a_region_whose_numbers_do_not_fit_is_refused(
    library: PluginLibrary, change: dict[str, float], message: str
) -> None:
    library.workspace_bytes(REGION)
    own = {"batch", "processors"}
    shape = {name: int(value) for name, value in change.items() if name in own}
    rest: dict[str, Any] = {name: value for name, value in change.items() if name not in own}
    attributes = dataclasses.replace(REGION.attributes, **rest)
    with pytest.raises(BadInput, match=message):
        library.workspace_bytes(dataclasses.replace(REGION, attributes=attributes, **shape))


def test_addresses_are_checked_before_anything_is_launched(library: PluginLibrary) -> None:
    size = library.workspace_bytes(REGION)
    good = [1 << 20] * 7
    with pytest.raises(BadInput, match="input 3 is null or not aligned"):
        library.enqueue(REGION, [*good[:3], 0, *good[4:]], [1 << 20], 1 << 20, size, 0)
    with pytest.raises(BadInput, match="output 0"):
        library.enqueue(REGION, good, [(1 << 20) + 2], 1 << 20, size, 0)
    with pytest.raises(BadInput, match="workspace is null or not aligned"):
        library.enqueue(REGION, good, [1 << 20], 0, size, 0)
    with pytest.raises(BadInput, match="the region needs"):
        library.enqueue(REGION, good, [1 << 20], 1 << 20, size - 1, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_library_says_so(library: PluginLibrary) -> None:
    with pytest.raises(EnvironmentLacks, match=r"device|driver"):
        library.check_device()
    size = library.workspace_bytes(REGION)
    with pytest.raises(EnvironmentLacks, match=r"device|driver"):
        library.enqueue(REGION, [1 << 20] * 7, [1 << 20], 1 << 20, size, 0)
