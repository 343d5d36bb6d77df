"""Advice to install something: it follows from where this copy came from, and pip takes it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from fastwan import install
from fastwan.errors import EnvironmentLacks
from fastwan.install import extra_of, how_to_install, require
from testkit.declared import declared_requirements

FILES = (
    "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "THIRD_PARTY_NOTICES.md",
)  # fmt: skip
"""What of a checkout its package is made of, beside the modules."""


def pip(*words: str, folder: Path) -> str:
    """Run pip without a network; what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tried(advice: str, folder: Path) -> str:
    """Have pip follow an advice up to the point where it would install."""
    program, action, *words = shlex.split(advice)
    assert (program, action) == ("pip", "install")
    dry = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation"]
    return pip("install", *dry, *words, folder=folder)


@pytest.fixture
def checkout(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an empty package, which this copy is said to be."""
    folder = tmp_path / "a checkout"
    package = folder / "src" / "fastwan"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in FILES:
        shutil.copy(root / name, folder)
    monkeypatch.setattr(install, "_PACKAGE", package)
    return folder


@pytest.fixture
def installed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A copy in no checkout, of whose origin a test says what is known."""
    told = SimpleNamespace(text=None)
    monkeypatch.setattr(install, "_PACKAGE", tmp_path / "site-packages" / "fastwan")
    required = [
        f'{each}; extra == "{extra}"' if extra else each
        for extra, requirements in declared_requirements(root).items()
        for each in requirements
    ]
    distribution = SimpleNamespace(read_text=lambda file: told.text, requires=required)
    monkeypatch.setattr(install.metadata, "distribution", lambda name: distribution)
    return told


def test_a_checkout_is_installed_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    assert how_to_install() == "pip install -c constraints.txt -e ."
    assert how_to_install("gpu") == "pip install -c constraints.txt -e '.[gpu]'"
    monkeypatch.chdir(checkout.parent)
    elsewhere = how_to_install("gpu")
    assert str(checkout) in elsewhere
    assert "Would install fastwan-export" in tried(elsewhere, checkout.parent)
    monkeypatch.chdir(checkout)
    assert "Would install fastwan-export" in tried(how_to_install("gpu"), checkout)


def test_a_wheel_is_installed_again_with_the_extra(
    checkout: Path, installed: SimpleNamespace, tmp_path: Path
) -> None:
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), ".", folder=checkout)
    (wheel,) = tmp_path.glob("*.whl")
    installed.text = json.dumps({"url": wheel.as_uri(), "archive_info": {}})
    assert how_to_install() == f"pip install {wheel}"
    assert how_to_install("gpu") == f"pip install '{wheel}[gpu]'"
    # It is there in this version, which pip may not install again.
    tried(how_to_install("gpu"), tmp_path)
    wheel.unlink()
    assert str(wheel) not in how_to_install("gpu")


def test_a_repository_and_a_url_are_named_again(installed: SimpleNamespace) -> None:
    where = "https://example.org/fastwan"
    installed.text = json.dumps({"url": where, "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert shlex.split(how_to_install("gpu"))[2:] == [f"fastwan-export[gpu] @ git+{where}@abc"]
    installed.text = json.dumps({"url": f"{where}.whl", "archive_info": {}})
    assert shlex.split(how_to_install())[2:] == [f"fastwan-export @ {where}.whl"]


@pytest.mark.parametrize("pip_there", [True, False])
def test_an_environment_of_uv_has_no_pip(
    checkout: Path, pip_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribution(name: str) -> SimpleNamespace:
        if name == "pip" and not pip_there:
            raise metadata.PackageNotFoundError(name)
        return SimpleNamespace()

    monkeypatch.setattr(install.metadata, "distribution", distribution)
    monkeypatch.chdir(checkout)
    program = "pip" if pip_there else "uv pip"
    assert how_to_install("gpu") == f"{program} install -c constraints.txt -e '.[gpu]'"


@pytest.mark.parametrize("text", [None, "no JSON", "[]"])
def test_without_an_origin_the_packages_themselves_are_named(
    installed: SimpleNamespace, text: str | None, tmp_path: Path
) -> None:
    installed.text = text
    gpu = how_to_install("gpu")
    assert "cuda-bindings" in gpu
    assert "fastwan-export" not in gpu
    assert "torch" not in gpu
    everywhere = how_to_install()
    assert "onnx" in everywhere
    assert "cuda-bindings" not in everywhere
    assert "fastwan-export" not in everywhere
    build = how_to_install("build")
    # An extra that another one takes in is spelled out.
    assert {"torch", "onnxruntime", "jinja2"} <= {Requirement(w).name for w in shlex.split(build)}
    assert "fastwan-export" not in build
    # pip finds them all installed here, and so needs no index.
    assert "Would install" not in tried(everywhere, tmp_path)
    assert "Would install" not in tried(build, tmp_path)


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize(
    ("module", "extras"),
    [
        ("cuda.bindings.runtime", ("gpu", "gpu")),
        ("cuda", ("gpu", "gpu")),
        ("tensorrt", ("tensorrt", "tensorrt")),
        ("tensorrt_rtx", ("build", "gpu")),
        ("torch.nn", ("build", "build")),
        ("av", ("cpu", "gpu")),
        ("click", ("", "")),
    ],
)
def test_a_module_has_its_extra(
    module: str, extras: tuple[str, str], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastwan.cuda_driver.cuda_device_count", lambda: gpus)
    assert extra_of(module) == extras[gpus]


@pytest.mark.parametrize(("absent", "refused"), [("torch", True), ("onnx_ir", False)])
def test_an_extra_is_asked_for_before_anything_is_imported(
    absent: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("build")
    monkeypatch.setitem(sys.modules, absent, None)
    if not refused:  # told where it is imported
        require("build")
        return
    with pytest.raises(EnvironmentLacks, match=r"'build'.*: no torch: pip install .*\[build\]"):
        require("build")


def test_no_other_file_advises_to_install_the_package(root: Path, tracked: list[Path]) -> None:
    folders = ("export", "engines", "runtime", "plugins", "src")
    files = [file for file in tracked if file.suffix == ".py" and file.parts[0] in folders]
    found = [str(file) for file in files if "pip install" in (root / file).read_text()]
    assert len(files) > 50
    assert found == ["plugins/build.py"]  # cmake, which is no package of Python's
