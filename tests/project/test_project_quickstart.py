"""The quickstart, run twice for real; a minute each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    # README shows this frame; another processor may round some pixels to a neighbouring level.
    shown, made = (
        np.asarray(Image.open(path), np.float32)
        for path in (root / "docs" / "images" / "frame.png", frame)
    )
    assert shown.shape == made.shape
    assert np.abs(shown - made).mean() < 2
