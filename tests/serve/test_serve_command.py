"""The command ``serve``: what it refuses at once, and with which exit code."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastwan.cli import main
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.serve.app import create_app
from fastwan.serve.auth import read_tokens
from fastwan.serve.server import listen, serve
from fastwan.serve.service import Service
from fastwan.serve.settings import Settings
from testkit.fake_player import FakePlayer


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder that looks like a bundle until it is opened."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["serve", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "65536"], "--port"),
        (["--queue", "0"], "--queue"),
        (["--keep-seconds", "0"], "--keep-seconds"),
        (["--device", "tpu"], "--device"),
        (["--tokens", "nowhere"], "No such file"),
        (["--client-share", "65"], "client_share 65 is above queue_size 64"),
    ],
)
def test_wrong_words_are_bad_input(bundle: Path, words: list[str], message: str) -> None:
    result = run(bundle, *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_missing_bundle_is_bad_input(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere")
    assert (result.exit_code, "bundle is not a folder" in result.stderr) == (2, True)


def test_without_its_extra_it_says_how_to_install_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = run(bundle)
    assert result.exit_code == 3
    assert "'serve'" in result.stderr
    assert "pip install" in result.stderr
    assert "[serve]" in result.stderr


def test_a_port_that_is_taken_lacks_in_the_environment(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run(bundle, "--port", taken.getsockname()[1])
    assert (result.exit_code, "--port" in result.stderr) == (3, True)


@pytest.mark.parametrize(
    ("host", "error"),
    [("127.0.0.1", None), ("192.0.2.1", BadInput), ("no such host", BadInput)],
)
def test_an_address_is_this_machines(
    tmp_path: Path, host: str, error: type[Exception] | None
) -> None:
    settings = Settings(folder=tmp_path, host=host, port=0)
    if error is None:
        listen(settings).close()
        return
    with pytest.raises(error):
        listen(settings)


@pytest.mark.parametrize("fault", [EnvironmentLacks("no GPU"), BadInput("no decoder")])
def test_a_player_that_cannot_be_made_ready_ends_the_server(
    tmp_path: Path, fault: EnvironmentLacks | BadInput
) -> None:
    settings, player = Settings(folder=tmp_path / "videos", port=0), FakePlayer()
    player.fault = fault
    with listen(settings) as listening, pytest.raises(type(fault), match=fault.what):
        serve(create_app(settings, player), listening)
    assert player.closed


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path / "videos")
    first = Service(settings, FakePlayer())
    with pytest.raises(BadInput, match="another server uses this folder"):
        Service(settings, FakePlayer())
    first.close()
    Service(settings, FakePlayer()).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_lacks_in_the_environment(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(EnvironmentLacks):
        Service(Settings(folder=closed / "videos"), FakePlayer())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alpha-alpha-alpha\n\nbeta-beta-beta-beta\n", ""),
        ("", "no tokens"),
        ("\n \n", "no tokens"),
        ("short\n", "shorter than 16"),
        ("alpha alpha alpha alpha\n", "blank in it"),
        ("ä" * 20, "not ASCII"),
    ],
)
def test_tokens_are_lines_of_a_file(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(content)
    if not message:
        assert read_tokens(file) == ("alpha-alpha-alpha", "beta-beta-beta-beta")
        return
    with pytest.raises(BadInput, match=message):
        read_tokens(file)


@pytest.mark.parametrize(
    ("fields", "share"),
    [({"queue_size": 0}, None), ({"queue_size": 1}, 1), ({}, 32), ({"client_share": 64}, 64)],
)
def test_settings_are_in_range(tmp_path: Path, fields: dict[str, int], share: int | None) -> None:
    if share is not None:
        assert Settings(folder=tmp_path, **fields).client_share == share  # type: ignore[arg-type]
        return
    with pytest.raises(BadInput, match="queue_size"):
        Settings(folder=tmp_path, **fields)  # type: ignore[arg-type]
