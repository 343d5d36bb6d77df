"""The quickstart and the README's commands, run for real; a minute each."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.trt]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    pytest.importorskip("tensorrt_rtx")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": search, "FASTWAN_CACHE_DIR": str(tmp_path / "cache")}


def test_the_quickstart_ends_with_three_paths(
    root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    if not Path(sys.prefix, "fastwan-installed").is_file():
        pytest.skip("this environment was not made by the scripts: run scripts/test.sh -m slow")
    environment |= {"FASTWAN_VENV": sys.prefix, "FASTWAN_OUT": str(tmp_path / "out")}
    videos = []
    for _ in range(2):
        done = subprocess.run(
            [root / "scripts" / "quickstart.sh"],
            env=environment, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        lines = dict(line.split(":", 1) for line in done.stdout.splitlines()[-3:])
        assert list(lines) == ["bundle", "video", "frame"]
        bundle, video, frame = (Path(path.strip()) for path in lines.values())
        assert (bundle / "manifest.json").is_file()
        assert frame.read_bytes().startswith(b"\x89PNG")
        videos.append(video.read_bytes())
    assert videos[0] == videos[1]


def test_the_commands_of_the_readme_run(
    root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    section = (root / "README.md").read_text().partition("\n## Commands\n")[2]
    block = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert block is not None
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    # Compiling the kernel takes a CUDA toolkit; tests/plugins does it.
    run = [words for words in lines if words[1] != "build-plugin"]
    assert len(run) == len(lines) - 1
    for words in run:
        subprocess.run(words, env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "fox.mp4").is_file()
    assert (tmp_path / "frames" / "frame_0000.png").is_file()
