"""The script that puts a server on each GPU, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("with_av", [True, False])
def test_servers_send_what_direct_calls_make(
    root: Path, tiny_bundle: Path, tmp_path: Path, with_av: bool
) -> None:
    """Without PyAV contents are digests of frames; a module that is None cannot be imported."""
    output = tmp_path / "record.json"
    (tmp_path / "sitecustomize.py").write_text(
        "" if with_av else "import sys\nsys.modules['av'] = None\n"
    )
    words = ["--device", "cpu", "--videos", "2", "--gpus", "0,0", "-o", str(output)]
    subprocess.run(
        [sys.executable, str(root / "scripts" / "serve_gpus.py"), str(tiny_bundle), *words],
        check=True, env={"PYTHONPATH": f"{tmp_path}:{root / 'src'}", "FASTWAN_COMMIT": "none"},
    )  # fmt: skip
    item = json.loads(output.read_text())["items"]["serve"]
    assert item["passed"]
    assert item["content"] == ("mp4" if with_av else "SHA-256 of each frame")
    assert item["direct"]["videos"] == 6
    assert item["one_by_one"]["videos"] == item["one_server"]["videos"] == 2
    for how in ("direct", "one_by_one", "one_server", "all_servers"):
        found = item[how]["median_stage_ms"]
        assert found["total"] > found["step"] + found["noise"] > 0
    assert item["known_prompt"].keys() == {"a_graph_a_step", "one_graph"}
    assert item["all_servers"]["videos"] == 4
    assert len(item["resident_bytes"]) == 2
    assert {"text", "decode", "rest", "write"} <= item["all_servers"]["median_stage_ms"].keys()
