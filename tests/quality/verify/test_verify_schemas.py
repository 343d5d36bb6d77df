"""What the commands print of a real bundle, by their published schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.quality.schemas import REPORTS

pytestmark = pytest.mark.trt


@pytest.mark.parametrize("command", ["inspect", "bench", "build-engine", "generate"])
def test_a_real_bundle_is_reported_by_the_schema(
    bundle_dir: Path, validator: Callable[[str], Draft202012Validator], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, command: str,
) -> None:  # fmt: skip
    bundle = str(bundle_dir)
    # The session's bundle was just built: only its report is made anew.
    built = "fastwan.build_shapes.build_bundle_of_shapes"
    monkeypatch.setattr(built, lambda *_: open_bundle(bundle).manifest)
    arguments = {
        "inspect": [bundle],
        "bench": [bundle, "--device", "null"],
        "build-engine": ["--checkpoint", "owner/unused", "-o", bundle],
        "generate": [bundle, "a fox", "--device", "cpu", "-o", str(tmp_path / "frames")],
    }
    done = CliRunner().invoke(main, [command, *arguments[command], "--json"])
    assert done.exit_code == 0, done.output
    check, printed = validator(command), json.loads(done.stdout)
    check.validate(printed)
    read = REPORTS[command].model_validate_json(done.stdout)
    assert json.loads(read.to_json()) == printed
    for field in printed:
        lost = {name: value for name, value in printed.items() if name != field}
        assert not check.is_valid(lost), field
