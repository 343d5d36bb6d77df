"""Ctrl-C in a real build: nothing half-written, and the next build goes on from there."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.trt]


def _command(command: list[str], checkpoint: Path, output: Path) -> list[str]:
    options = ["--checkpoint", str(checkpoint), "--components", "dit", "-o", str(output), "--json"]
    return [*command, "build-engine", *options]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("stage", ["trace transformer", "quantise transformer"])
def test_interrupted_build_leaves_nothing(
    command: list[str],
    tiny_folder: Path,
    tmp_path: Path,
    environment: dict[str, str],
    stage: str,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "bundles" / "bundle"
    arguments = _command(command, tiny_folder, output)
    process = subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:  # a stage is named when it is done: the next one is running
        seen.append(line)
        if line.startswith(stage):
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=120)
    # CPython ends by the signal itself if it came while code was executed, as an import does.
    assert process.returncode in (130, -signal.SIGINT), (seen, rest)
    assert out == ""
    assert rest.endswith("error: interrupted; nothing was left behind\n")
    assert "Traceback" not in rest
    assert list(output.parent.iterdir()) == []

    again = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    report = json.loads(again.stdout)
    assert (
        report["components"]["dit"]["linears"] == report["components"]["dit"]["quantised_linears"]
    )
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]
