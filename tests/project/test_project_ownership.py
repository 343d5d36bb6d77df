"""The command line never deletes what it did not write, and leaves nothing when it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastwan.cli import main
from fastwan.export.checkpoint.synthetic import make_checkpoint


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_checkpoint(folder, size="tiny", text_encoder=False)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


MARKERS = ("model_index.json", "manifest.json", "frames.json", "fastwan-export.json")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Somebody's folder, in which files of every name lie that this tool writes, too."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (*MARKERS, "cat.png", "export.json", "layers.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(params=["make-checkpoint", "build-engine", "frames", "generate -o"])
def command(request: pytest.FixtureRequest, checkpoint: Path) -> Callable[..., Result]:
    """A command that writes a folder, called with the folder and further options."""

    def call(folder: Path, *options: str) -> Result:
        if request.param == "make-checkpoint":
            return run("make-checkpoint", "--size", "tiny", folder, *options)
        if request.param == "build-engine":
            return run("build-engine", "--checkpoint", checkpoint, "-o", folder, *options)
        if request.param == "frames":
            video = folder.parent / "x.mp4"
            return run("generate", "no-bundle", "fox", "-o", video, "--frames", folder, *options)
        return run("generate", "no-bundle", "fox", "-o", folder, *options)

    return call


def test_somebodys_folder_is_refused_first_and_untouched(
    photos: Path, command: Callable[..., Result]
) -> None:
    before = content(photos)
    done = command(photos)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert "--force" in line
    assert "cat.png" in line
    assert content(photos) == before
    assert os.listdir(photos.parent) == ["photos"]


def test_the_current_folder_is_never_an_output(
    photos: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(photos)
    monkeypatch.chdir(photos)
    done = command(photos, "--force")
    assert done.exit_code == 2
    assert "current folder" in done.stderr
    assert content(photos) == before


def test_force_says_what_it_deletes(photos: Path) -> None:
    done = run("make-checkpoint", "--size", "tiny", photos, "--force")
    assert done.exit_code == 0, done.stderr
    assert "--force deletes cat.png, export.json, fastwan-export.json and" in done.stderr
    assert not (photos / "cat.png").exists()
    assert (photos / "transformer" / "config.json").is_file()


def test_a_checkpoint_is_replaced_by_a_checkpoint_alone(checkpoint: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    assert run("make-checkpoint", "--size", "tiny", mine).exit_code == 0
    before = content(mine)
    for options in ((), ("--force",)):
        done = run("build-engine", "--checkpoint", mine, "-o", mine, *options)
        assert done.exit_code == 2
        assert "replace the input" in done.stderr
    done = run("build-engine", "--checkpoint", checkpoint, "-o", mine)
    assert done.exit_code == 2
    assert "as a bundle" in done.stderr
    assert content(mine) == before


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_cleans_up(checkpoint: Path, tmp_path: Path, name: str) -> None:
    out, cache, temporary = (tmp_path / each for each in ("out", "cache", "tmp"))
    for folder in (out, temporary):
        folder.mkdir()
    number = getattr(signal, name)
    environment = {**os.environ, "FASTWAN_CACHE_DIR": str(cache), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "fastwan.cli", "build-engine", "--checkpoint"]
    command += [str(checkpoint), "--components", "dit", "-o", str(out / "new" / "bundle")]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (out / "new").is_dir():  # the work has begun
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    # CPython ends by SIGINT itself if it came while code was executed, as an import does.
    assert process.returncode in (128 + number, -number)
    assert said.strip().splitlines()[-1].endswith("nothing was left behind")
    assert os.listdir(out) == []
    assert os.listdir(temporary) == []
