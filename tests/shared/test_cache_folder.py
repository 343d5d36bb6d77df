"""Where the cache lies and how large it may be, as the environment says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastwan import cache_folder, content_cache
from fastwan.cache_folder import cache_dir, cache_root, max_cache_bytes
from fastwan.cli import main
from fastwan.content_cache import ContentCache
from fastwan.errors import EnvironmentLacks, FastWanWarning

KEY = "0" * 64


def test_every_kind_lies_under_one_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path))
    kinds = ("exports", "engines", "runtime", "plugins")
    assert [cache_dir(kind) for kind in kinds] == [tmp_path / kind for kind in kinds]
    from fastwan.plugins import loader

    monkeypatch.setattr(loader, "checkout_root", lambda: None)
    assert loader.build_folder() == tmp_path / "plugins"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FASTWAN_CACHE_DIR": "/named", "XDG_CACHE_HOME": "/xdg"}, "/named"),
        ({"FASTWAN_CACHE_DIR": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/fastwan"),
        ({"XDG_CACHE_HOME": "relative"}, "/h/me/.cache/fastwan"),
        ({}, "/h/me/.cache/fastwan"),
        ({"FASTWAN_CACHE_DIR": "~/here"}, "/h/me/here"),
        ({"FASTWAN_CACHE_DIR": "relative"}, "/w/relative"),
    ],
)
def test_the_root_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("FASTWAN_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h/me")
    monkeypatch.setattr(cache_folder.sys, "platform", "linux")
    monkeypatch.setattr(os, "getcwd", lambda: "/w")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


@pytest.mark.parametrize(
    "text", ["²", "٣", "-1", "+1", " 1", "1_000", "1e9", "2GB", "nan", "9" * 19]
)
def test_a_limit_that_is_no_number_is_one_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_MAX_BYTES", text)
    with pytest.raises(EnvironmentLacks, match="no number of bytes") as refused:
        max_cache_bytes()
    assert refused.value.where == "FASTWAN_CACHE_MAX_BYTES"
    with pytest.raises(EnvironmentLacks):
        ContentCache("engines")


@pytest.mark.parametrize(("text", "limit"), [("0", 0), ("1000", 1000), ("", 30 << 30)])
def test_a_limit_is_a_number_of_bytes(
    monkeypatch: pytest.MonkeyPatch, text: str, limit: int
) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_MAX_BYTES", text)
    assert max_cache_bytes() == limit


def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know, as in many containers."""
    import pwd

    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "FASTWAN_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    homeless(monkeypatch)
    monkeypatch.setattr(content_cache, "_SAID", set())
    with pytest.raises(EnvironmentLacks, match=r"no home folder.*FASTWAN_CACHE_DIR"):
        cache_root()
    with pytest.warns(FastWanWarning, match="no home folder"):
        cache = ContentCache("engines")
    assert cache.folder is None
    assert cache.put(KEY, {"x": b"1"}, {}) is None
    assert cache.read(KEY) is None
    cache.forget(KEY)
    with cache.lock(KEY):
        pass


def test_a_user_without_a_home_names_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    homeless(monkeypatch)
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path))
    cache = ContentCache("engines")
    cache.put(KEY, {"x": b"1"}, {})
    assert cache.read(KEY) == ({"x": b"1"}, {})


@pytest.mark.parametrize("limit", ["²", "1000"])
def test_the_command_line_says_what_is_wrong_with_the_cache_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("FASTWAN_CACHE_MAX_BYTES", limit)
    command = ["build-engine", "--checkpoint", str(tmp_path), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, command)
    lines = result.stderr.splitlines()
    if limit == "²":
        assert result.exit_code == 3
        (error,) = lines
    else:  # goes on, to the folder that is no checkpoint
        assert result.exit_code == 2
        warning, error = lines
        assert warning.startswith("warning: the cache in ")
    assert error.startswith("error: ")
    assert ("FASTWAN_CACHE_MAX_BYTES" in error) == (limit == "²")
