"""The folder that brings the nodes into ComfyUI: written whole, and over nothing of others."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import fastwan
from fastwan.cli import main
from fastwan.comfyui import install as installing
from fastwan.comfyui import nodes
from fastwan.comfyui.install import NAME, install
from fastwan.errors import BadInput
from fastwan.install import extra_of, how_to_install
from fastwan.plugins.loader import checkout_root

SOURCE = Path(installing.__file__).parent / "custom_node"


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    return tmp_path / "ComfyUI"


def files(folder: Path) -> dict[str, bytes]:
    return {
        each.relative_to(folder).as_posix(): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file()
    }


def test_the_folder_has_one_python_file_and_the_workflows(comfyui: Path) -> None:
    report = install(comfyui)
    written = files(Path(report.custom_node))
    del written["fastwan-export.json"]
    assert Path(report.custom_node) == comfyui / "custom_nodes" / NAME
    assert report.models == str(comfyui / "models" / "fastwan")
    assert [name for name in written if name.endswith(".py")] == ["__init__.py"]
    assert written == {n: c for n, c in files(SOURCE).items() if "__pycache__" not in n}
    assert len([name for name in written if name.endswith(".json")]) == 8


def test_what_is_written_is_a_custom_node(comfyui: Path) -> None:
    folder = Path(install(comfyui).custom_node)
    read = runpy.run_path(str(folder / "__init__.py"))
    assert read["NODE_CLASS_MAPPINGS"] == nodes.NODE_CLASS_MAPPINGS
    assert read["NODE_DISPLAY_NAME_MAPPINGS"] == nodes.NODE_DISPLAY_NAME_MAPPINGS


def test_the_registrys_metadata_is_of_this_version() -> None:
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    own = tomllib.loads((SOURCE / "pyproject.toml").read_text())
    package = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert own["project"]["version"] == package["version"] == fastwan.__version__
    assert own["project"]["license"] == package["license"]
    assert own["project"]["name"] == package["name"] == NAME
    assert own["project"]["dependencies"] == [f"{NAME}[comfyui]"]
    assert "comfyui" in package["optional-dependencies"]
    assert set(own["tool"]["comfy"]) == {"PublisherId", "DisplayName"}


@pytest.mark.parametrize("missing", ["", "ml_dtypes", "onnxruntime", "fastwan"])
def test_a_missing_package_is_named_with_the_python_it_belongs_to(
    comfyui: Path, missing: str
) -> None:
    folder = Path(install(comfyui).custom_node)
    script = (
        f"import sys, runpy; sys.modules[{missing!r}] = None\n"
        f"runpy.run_path({str(folder / '__init__.py')!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if missing in ("", "onnxruntime"):  # which is imported with the first video
        assert done.returncode == 0, done.stderr
        return
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {sys.executable} lacks the Python package '{missing}")
    if missing == "fastwan":
        assert last.endswith("of fastwan-export there, see docs/comfyui.md")
    else:
        assert last.endswith(f": {how_to_install(extra_of(missing))}")


def test_the_portable_edition_is_found(comfyui: Path) -> None:
    assert install(comfyui.parent) == install(comfyui)


def test_a_folder_without_comfyui_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a folder custom_nodes is missing"):
        install(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compiled", [True, False])
def test_an_earlier_one_is_replaced(comfyui: Path, compiled: bool) -> None:
    folder = Path(install(comfyui).custom_node)
    before = files(folder)
    if compiled:
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(folder)], check=True)
        assert (folder / "__pycache__").is_dir()
    install(comfyui)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("", ""),
        ("mine.py", "print(1)"),
        ("__init__.py", "NODE_CLASS_MAPPINGS = {}"),
        ("__pycache__/mine.pyc", "x"),
    ],
)
def test_what_somebody_else_wrote_is_left_alone(comfyui: Path, name: str, content: str) -> None:
    folder = Path(install(comfyui).custom_node)
    if not name:
        install(comfyui)
        return
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    before = files(folder)
    with pytest.raises(BadInput, match="what was not written there"):
        install(comfyui)
    assert files(folder) == before


def test_a_folder_of_that_name_from_elsewhere_is_refused(comfyui: Path) -> None:
    other = comfyui / "custom_nodes" / NAME
    other.mkdir()
    (other / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}")
    with pytest.raises(BadInput, match="what was not written there"):
        install(comfyui)
    assert files(other) == {"__init__.py": b"NODE_CLASS_MAPPINGS = {}"}


def test_the_command_says_where(comfyui: Path) -> None:
    done = CliRunner().invoke(main, ["comfyui", "--install", str(comfyui)])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{comfyui / 'custom_nodes' / NAME}\n"
    assert "models/fastwan" in done.stderr
    asked = CliRunner().invoke(main, ["comfyui", "--install", str(comfyui), "--json"])
    assert json.loads(asked.stdout)["custom_node"] == str(comfyui / "custom_nodes" / NAME)
    refused = CliRunner().invoke(main, ["comfyui", "--install", str(comfyui / "custom_nodes")])
    assert refused.exit_code == 2
