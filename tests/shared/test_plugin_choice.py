"""The plugin library that a build puts into the bundle: checked, or none."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from fastwan.build import plugin_library
from fastwan.engines.backend import load_backend
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.export.attentions import find_attention
from fastwan.plugins import loader


def chosen() -> Path | None:
    return plugin_library(find_attention("sage3"), load_backend("tensorrt-rtx"))


def system_library() -> Path:
    name = f"/lib/{platform.machine()}-linux-gnu/libc.so.6"
    if not Path(name).exists():
        pytest.skip(f"no {name}")
    return Path(name)


@pytest.mark.parametrize("kept_bytes", [None, 5000, 0])
def test_a_damaged_library_is_refused_before_it_is_packed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept_bytes: int | None
) -> None:
    library = tmp_path / "plugins.so"
    shutil.copyfile(system_library(), library)
    if kept_bytes is not None:
        library.write_bytes(library.read_bytes()[:kept_bytes])
    monkeypatch.setenv("FASTWAN_PLUGIN_LIBRARY", str(library))
    if kept_bytes is None:
        assert chosen() == library
    else:
        with pytest.raises(BadInput, match=r"plugins\.so"):
            chosen()


@pytest.mark.parametrize("emulated", ["yes", "no"])
def test_a_library_that_emulates_is_refused_before_it_is_packed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, emulated: str
) -> None:
    library = tmp_path / "plugins.so"
    build_info = f"version=0.1.0 tensorrt=none emulated={emulated}".encode()
    library.write_bytes(system_library().read_bytes() + build_info)
    monkeypatch.setenv("FASTWAN_PLUGIN_LIBRARY", str(library))
    if emulated == "no":
        assert chosen() == library
    else:
        with pytest.raises(BadInput, match=r"emulates FP4 for compute capability 9\.0"):
            chosen()


@pytest.mark.parametrize("named", [True, False])
def test_a_library_that_was_named_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: bool
) -> None:
    monkeypatch.setattr(loader, "build_folder", lambda **_: tmp_path)
    if named:
        monkeypatch.setenv("FASTWAN_PLUGIN_LIBRARY", str(tmp_path / "absent.so"))
        with pytest.raises(EnvironmentLacks, match="FASTWAN_PLUGIN_LIBRARY"):
            chosen()
    else:
        monkeypatch.delenv("FASTWAN_PLUGIN_LIBRARY", raising=False)
        assert chosen() is None
