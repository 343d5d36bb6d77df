"""`scripts/load.py`: what it counts, over a fake player, and all of it over the tiny bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from testkit.server_process import started

# To import it would replace the sockets and threads of this process.
pytestmark = pytest.mark.skipif(find_spec("locust") is None, reason="locust is not installed")

COUNT = """
import json, sys

sys.path.insert(0, sys.argv[1])
from load_customers import Plan, load
from load_prompts import prompt

plan = Plan(int(sys.argv[3]), {prompt(1): sys.argv[4]} if sys.argv[4] else {})
stats = load(sys.argv[2], plan, rate=100).stats
print(json.dumps({
    **{name: getattr(plan, name) for name in ("done", "lost", "wrong", "asked")},
    "posts": stats.get("/v1/videos", "POST").num_requests,
    "whole": stats.get("from the first try to the video", "").num_requests,
    "moments": len(plan.moments),
}))
"""


@pytest.mark.parametrize(("digest", "wrong"), [("", 0), ("0" * 64, 2)])
def test_every_request_is_followed_to_its_video(
    tmp_path: Path, root: Path, digest: str, wrong: int
) -> None:
    with started("-m", "testkit.fake_server", str(tmp_path / "videos"), "0") as server:
        done = subprocess.run(
            [sys.executable, "-c", COUNT, str(root / "scripts"), server.url, "10", digest],
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts.pop("moments") >= 1
    assert counts == {
        "done": 10, "lost": 0, "wrong": wrong, "asked": 10, "posts": 10, "whole": 10
    }  # fmt: skip


def test_a_job_that_fails_is_lost(tmp_path: Path, root: Path) -> None:
    with started("-m", "testkit.fake_server", str(tmp_path / "videos"), "0", "fail") as server:
        done = subprocess.run(
            [sys.executable, "-c", COUNT, str(root / "scripts"), server.url, "3", ""],
            capture_output=True, text=True,
        )  # fmt: skip
    counts = json.loads(done.stdout)
    assert (counts["done"], counts["lost"]) == (2, 1)
    assert "RuntimeError: asked to fail" in done.stderr


@pytest.mark.slow
@pytest.mark.trt
def test_the_server_of_the_tiny_bundle_loses_nothing(
    tiny_bundle: Path, tmp_path: Path, root: Path
) -> None:
    report = tmp_path / "report.json"
    script = root / "scripts" / "load.py"
    words = [str(tiny_bundle), "--requests", "100", "-o", str(report)]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(report.read_text())
    assert (counts["done"], counts["lost"], counts["wrong"]) == (100, 0, 0)
    for line in ("| done | 100 |", "| second | RSS | waiting |"):
        assert line in done.stdout
