"""A release: an sdist and a Linux wheel that plays where nothing can be compiled."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fastwan.plugins import build, loader
from fastwan.plugins.library_file import sources_digest

LIBRARY = f"fastwan/plugins/{loader.LIBRARY_NAME}"
C_SOURCE = """
int fastwan_interface_version(void) { return %d; }
const char* fastwan_last_error(void) { return ""; }
const char* fastwan_build_info(void) { return "version=%s attention=120a prologue=80 sources=%s"; }
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the interface of the plugin library, and nothing in it."""
    compiler = shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    path = tmp_path_factory.mktemp("library") / "stand_in.so"
    source = C_SOURCE % (loader.INTERFACE_VERSION, loader.LIBRARY_VERSION, sources_digest())
    command = [compiler, "-x", "c", "-", "-shared", "-fPIC", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)
    return path


@pytest.fixture(scope="module")
def environment(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For the scripts: this very environment in place of one of their own."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    pytest.importorskip("wheel")
    pytest.importorskip("auditwheel")
    venv = tmp_path_factory.mktemp("venv")
    (venv / "bin").mkdir()
    for name, module in (("python", ""), ("fastwan-export", " -m fastwan")):
        (venv / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        (venv / "bin" / name).chmod(0o755)
    key = "".join((root / each).read_text() for each in ("pyproject.toml", "constraints.txt"))
    (venv / "fastwan-installed").write_text(f"{root}\n{key}")
    return {**os.environ, "FASTWAN_VENV": str(venv)}


def release(root: Path, out: Path, environment: dict[str, str]) -> dict[str, bytes]:
    """Files of a release by name."""
    command = [root / "scripts" / "release.sh", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    told = dict(reversed(line.split("  ")) for line in done.stdout.splitlines())
    assert told == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return files


@pytest.fixture(scope="module")
def released(
    root: Path,
    environment: dict[str, str],
    stand_in: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A release with the stand-in; read only."""
    out = tmp_path_factory.mktemp("dist")
    release(root, out, {**environment, loader.LIBRARY_VARIABLE: str(stand_in)})
    return out


def test_a_release_is_the_same_bytes_again(
    root: Path, environment: dict[str, str], stand_in: Path, released: Path, tmp_path: Path
) -> None:
    again = release(root, tmp_path, {**environment, loader.LIBRARY_VARIABLE: str(stand_in)})
    assert len(again) == 2
    assert again == {path.name: path.read_bytes() for path in released.iterdir()}


def test_a_library_of_other_sources_is_not_released(
    root: Path, environment: dict[str, str], stand_in: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(stand_in.read_bytes().replace(sources_digest().encode(), b"0" * 64))
    command = [root / "scripts" / "release.sh", tmp_path / "dist"]
    named = {**environment, loader.LIBRARY_VARIABLE: str(other)}
    done = subprocess.run(command, env=named, capture_output=True, text=True)
    assert done.returncode != 0
    assert "was built from other sources" in done.stderr
    assert not (tmp_path / "dist").exists()


def test_the_sdist_holds_each_module_once_and_no_binary(
    root: Path, released: Path, tracked: list[Path]
) -> None:
    (path,) = released.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = [member.name.partition("/")[2] for member in members if member.isfile()]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert {"LICENSE", "THIRD_PARTY_NOTICES.md", "README.md", "pyproject.toml"} <= set(names)
    modules = [
        name
        for name in names
        if name.endswith(".py") and not name.startswith("tests/") and name != "setup.py"
    ]
    package = [
        file
        for file in tracked
        if file.suffix == ".py"
        and file.parts[0] in ("export", "engines", "runtime", "plugins", "src")
    ]
    assert len(modules) == len(package) > 200


def test_the_wheel_is_for_linux_and_has_the_library_and_its_notices(
    released: Path, stand_in: Path
) -> None:
    (path,) = released.glob("*.whl")
    python, abi, platform = path.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert platform.startswith("manylinux_2_")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read(LIBRARY) == stand_in.read_bytes()
        names = archive.namelist()
        (info,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        tags = archive.read(info).decode().splitlines()
        record = archive.read(info.replace("WHEEL", "RECORD")).decode()
    assert f"Tag: py3-none-{platform}" in tags
    assert "Root-Is-Purelib: false" in tags
    assert LIBRARY in record
    assert len([name for name in names if name.endswith("licenses/THIRD_PARTY_NOTICES.md")]) == 1


INSTALLED = """
import json

import fastwan
from fastwan.build import plugin_library
from fastwan.doctor import diagnose
from fastwan.engines.backend import load_backend
from fastwan.export.attentions import find_attention

packed = plugin_library(find_attention("sage3"), load_backend("tensorrt-rtx"))
found = {each.name: each.detail for each in diagnose()}
print(json.dumps([fastwan.__file__, str(packed), found["plugin library"]]))
"""


def installed(wheel: Path, folder: Path) -> Path:
    """The python of a new environment with a wheel, and with what it needs from this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python3.*/site-packages")
    here = [each for each in sys.path if each.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(here))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, capture_output=True)
    return python


def clean(environment: dict[str, str], python: Path, cache: Path) -> dict[str, str]:
    """Of `environment` what does not lead to this checkout or to a compiler."""
    hidden = {"PYTHONPATH", "CUDACXX", "CUDA_HOME", "CUDA_PATH", loader.LIBRARY_VARIABLE}
    kept = {name: value for name, value in environment.items() if name not in hidden}
    path = f"{python.parent}:/usr/bin:/bin"
    return {**kept, "PATH": path, "FASTWAN_CACHE_DIR": str(cache)}


def test_an_installed_wheel_finds_its_library(released: Path, tmp_path: Path) -> None:
    (wheel,) = released.glob("*.whl")
    python = installed(wheel, tmp_path / "venv")
    done = subprocess.run(
        [python, "-c", INSTALLED],
        cwd=tmp_path,
        env=clean(dict(os.environ), python, tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=True,
    )
    package, library, told = json.loads(done.stdout.splitlines()[-1])
    assert Path(package).is_relative_to(tmp_path)
    assert Path(library) == Path(package).parent / "plugins" / loader.LIBRARY_NAME
    assert told.startswith("from the wheel, serves compute capability 12.0;")


def test_every_kernel_has_a_name_that_does_not_depend_on_its_folder() -> None:
    """nvcc would name internal symbols after the path."""
    text = (build.SOURCE / "CMakeLists.txt").read_text()
    (names,) = re.findall(r"foreach\(name (attention .*)\)", text)
    kernels = {path.stem for path in build.SOURCE.glob("csrc/*.cu")}
    assert len(kernels) > 3
    assert set(names.split()) == kernels


@pytest.mark.slow
@pytest.mark.trt
def test_a_real_release_plays(
    root: Path,
    environment: dict[str, str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library is compiled twice, in two folders, and is the same bytes."""
    if missing := build.missing_for_build():
        pytest.skip("missing: " + ", ".join(item.name for item in missing))
    monkeypatch.delenv(loader.LIBRARY_VARIABLE, raising=False)
    files = release(root, tmp_path / "dist", environment)
    # The folder of the first keeps the headers of TensorRT that it was once configured with.
    folder = loader.build_folder()
    found = re.search(
        r"^FASTWAN_TENSORRT_INCLUDE:PATH=(.*)$", (folder / "CMakeCache.txt").read_text(), re.M
    )
    assert found
    copy = tmp_path / "sources"  # python -m finds modules in its folder, and copy is one
    shutil.copytree(build.SOURCE, copy)
    other = tmp_path / "other"
    configure = ["cmake", "-G", "Ninja", "-S", copy, "-B", other]
    configure += [f"-DFASTWAN_PYTHON={sys.executable}"]
    configure += [f"-DFASTWAN_HEADER_DOWNLOADS={folder / 'kernel_headers'}"]
    configure += [f"-DFASTWAN_TENSORRT_INCLUDE={found[1]}"]
    subprocess.run(configure, check=True)
    compiled = ["cmake", "--build", other, "--parallel", "2"]
    subprocess.run(compiled, check=True, stdout=subprocess.DEVNULL)
    (name,) = (each for each in files if each.endswith(".whl"))
    assert len(files[name]) < 10_000_000
    with zipfile.ZipFile(tmp_path / "dist" / name) as archive:
        library = archive.read(LIBRARY)
    assert library == (other / loader.LIBRARY_NAME).read_bytes()

    python = installed(tmp_path / "dist" / name, tmp_path / "venv")
    bundle, there = tmp_path / "bundle", clean(environment, python, tmp_path / "cache")
    command = [python, "-m", "fastwan"]
    built = [*command, "build-engine", "--checkpoint", tiny_checkpoint, "-o", bundle, "--fusion"]
    subprocess.run([*built, "all"], cwd=tmp_path, env=there, check=True)
    assert (bundle / "plugins" / loader.LIBRARY_NAME).read_bytes() == library
    played = [*command, "generate", bundle, "A red fox", "-o", tmp_path / "fox.mp4"]
    subprocess.run([*played, "--device", "cpu"], cwd=tmp_path, env=there, check=True)
    assert (tmp_path / "fox.mp4").stat().st_size > 0
