"""What `doctor --comfyui` says of a ComfyUI."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

import fastwan
from fastwan.cli import main
from fastwan.comfyui.found import findings
from fastwan.comfyui.install import install
from fastwan.doctor import Finding

NODES, PYTHON, ABILITY = "nodes in ComfyUI", "Python of ComfyUI", "play bundles in ComfyUI"


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ComfyUI that lacks nothing, run by this Python; a test takes one piece away."""
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "1" if name.startswith("comfyui-") else real(name)
    )
    root = tmp_path / "ComfyUI"
    (root / "custom_nodes").mkdir(parents=True)
    (root / "comfyui_version.py").write_text('# made\n__version__ = "0.33.0"\n')
    install(root)
    return root


def found(folder: Path) -> dict[str, Finding]:
    named = {each.name: each for each in findings(folder)}
    for each in named.values():
        assert bool(each.fix) == (each.status != "ok"), each
        assert "\n" not in each.detail + each.fix
    return named


def test_a_whole_one_can_play(comfyui: Path) -> None:
    parts = found(comfyui)
    assert {each.status for each in parts.values()} == {"ok"}
    assert parts["ComfyUI"].detail == f"0.33.0 ({comfyui})"
    assert parts[NODES].detail.startswith(f"{fastwan.__version__} (")
    assert list(parts) == ["ComfyUI", NODES, PYTHON, ABILITY]
    assert found(comfyui.parent) == parts  # the portable edition's folder


def test_without_nodes_it_says_how_to_install_them(comfyui: Path) -> None:
    (comfyui / "custom_nodes" / "fastwan-export" / "__init__.py").unlink()
    parts = found(comfyui)
    assert (parts[NODES].status, parts[NODES].detail) == ("missing", "not installed")
    assert parts[ABILITY].status == "missing"
    assert parts[ABILITY].fix == parts[NODES].fix == f"fastwan-export comfyui --install {comfyui}"


@pytest.mark.parametrize(
    ("content", "version"),
    [
        ('[project]\nversion = "0.0.9"', "0.0.9"),
        ("[project]", "of unknown version"),
        ("project = 1", "of unknown version"),
        ("[", "of unknown version"),
    ],
)
def test_nodes_of_another_version_are_told(comfyui: Path, content: str, version: str) -> None:
    (comfyui / "custom_nodes" / "fastwan-export" / "pyproject.toml").write_text(content)
    parts = found(comfyui)
    assert parts[NODES].status == parts[ABILITY].status == "optional"
    assert parts[NODES].detail.startswith(f"{version}, this package is {fastwan.__version__} (")


def test_another_python_than_comfyuis_is_told(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", lacking)
    parts = found(comfyui)
    assert parts[PYTHON].status == parts[ABILITY].status == "optional"
    assert parts[PYTHON].fix.endswith(f"-m fastwan doctor --comfyui {comfyui}")


@pytest.mark.parametrize("content", [None, "version = 1"])
def test_a_comfyui_of_unknown_version_is_one(comfyui: Path, content: str | None) -> None:
    (comfyui / "comfyui_version.py").unlink()
    if content is not None:
        (comfyui / "comfyui_version.py").write_text(content)
    parts = found(comfyui)
    assert parts["ComfyUI"].detail == f"of unknown version ({comfyui})"
    assert parts["ComfyUI"].status == parts[ABILITY].status == "ok"


def test_a_folder_without_comfyui_is_a_finding(tmp_path: Path) -> None:
    parts = found(tmp_path)
    assert list(parts) == ["ComfyUI", ABILITY]
    assert {each.status for each in parts.values()} == {"missing"}
    assert str(tmp_path) in parts["ComfyUI"].detail


def test_the_command_tells_of_it_where_it_is_asked(comfyui: Path) -> None:
    asked = CliRunner().invoke(main, ["doctor", "--json", "--comfyui", str(comfyui)])
    assert asked.exit_code == 0, asked.output
    names = [each["name"] for each in json.loads(asked.stdout)["findings"]]
    assert names[-4:] == ["ComfyUI", NODES, PYTHON, ABILITY]
    plain = CliRunner().invoke(main, ["doctor", "--json"])
    assert [each["name"] for each in json.loads(plain.stdout)["findings"]] == names[:-4]
