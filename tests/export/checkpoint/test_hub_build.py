"""A build from a hub id: pinned in the manifest, and the same again with the hub gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.manifest import Manifest
from fastwan.manifest_sources import HubSource
from fastwan.quality.verify import run
from testkit import stand_in_hub
from testkit.stand_in_hub import COMMITS, REPO, StandInHub, files_of
from testkit.tracing import quick_traces

pytest.importorskip("huggingface_hub")
pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.trt

OLD, NEW, _ = COMMITS
DECODER = "taew2_1.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path) -> Iterator[StandInHub]:
    """A hub whose main branch holds the tiny checkpoint at a second commit."""
    files = files_of(tiny)
    changed = files | {DECODER: b"not of this commit"}
    stand_in = StandInHub({OLD: changed, NEW: files}, {"main": NEW})
    with stand_in_hub.serve(stand_in) as address, quick_traces():
        stand_in_hub.use(monkeypatch, address, tmp_path / "hub")
        yield stand_in


def build(output: Path, *options: str) -> Result:
    command = ["build-engine", "--checkpoint", REPO, "--components", "decoder", "--json"]
    return CliRunner().invoke(main, [*command, *options, "-o", str(output)])


def identity(bundle: Path) -> dict[str, Any]:
    """All of a manifest, with every file's hash, but what the build took."""
    fields = json.loads((bundle / "manifest.json").read_text())
    del fields["build"]
    return dict(fields)


def test_it_builds_again_to_the_byte_without_the_hub(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = build(tmp_path / "online")
    assert done.exit_code == 0, done.output
    manifest = open_bundle(tmp_path / "online").manifest
    assert manifest.onnx.model.checkpoint == HubSource(repo=REPO, commit=NEW)
    assert len(manifest.files) > 3
    hub.stop()
    for name, options in (("gone", []), ("offline", ["--revision", NEW])):
        if name == "offline":
            stand_in_hub.offline(monkeypatch)
        done = build(tmp_path / name, *options)
        assert done.exit_code == 0, done.output
        assert identity(tmp_path / name) == identity(tmp_path / "online")


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("v9", 2, "the model has no such revision"),
        ("../x", 2, "'../x' is no revision"),
        (OLD, 2, DECODER),
    ],
)
def test_a_revision_that_is_none_ends_the_build(
    hub: StandInHub, tmp_path: Path, option: str, code: int, message: str
) -> None:
    done = build(tmp_path / "out", "--revision", option)
    assert done.exit_code == code
    errors = [line for line in done.output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pinned", [True, False])
def test_verify_takes_the_commit_that_the_manifest_names(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, pinned: bool
) -> None:
    """Though the branch has moved since."""
    hub.commits[OLD] = hub.commits[NEW]
    bundle = open_bundle(tiny_bundle)
    source = HubSource(repo=REPO if pinned else "owner/other", commit=OLD)
    model = bundle.manifest.onnx.model.model_copy(update={"checkpoint": source})
    onnx = bundle.manifest.onnx.model_copy(update={"model": model})
    bundle.manifest = Manifest.model_copy(bundle.manifest, update={"onnx": onnx})
    monkeypatch.setattr(run, "open_bundle", lambda *args, **options: bundle)
    seen: list[Any] = []

    def stop(subject: Any, checks: Any, progress: Any) -> Any:
        seen.append(subject.checkpoint.hub)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_checks", stop)
    with pytest.raises(KeyboardInterrupt):
        run.verify_bundle(tiny_bundle, checkpoint=REPO)
    (found,) = seen
    assert found == HubSource(repo=REPO, commit=OLD if pinned else NEW)
