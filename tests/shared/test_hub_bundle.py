"""A bundle by its hub id, from a stand-in hub on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput, EnvironmentLacks, VerificationFailed
from fastwan.hub.bundle import fetch_bundle
from fastwan.manifest import MANIFEST
from testkit import stand_in_hub
from testkit.manifests import write_manifest
from testkit.stand_in_hub import COMMITS, REPO, StandInHub, files_of

pytest.importorskip("huggingface_hub")

COMMIT = COMMITS[0]


@pytest.fixture
def uploaded(tmp_path: Path) -> Path:
    """A folder as it is uploaded: a bundle, and what a repository has beside one."""
    folder = tmp_path / "bundle"
    (folder / "onnx").mkdir(parents=True)
    (folder / "layers.json").write_text("{}")
    (folder / "onnx" / "dit.data").write_bytes(bytes(range(256)))
    write_manifest(folder)
    (folder / "README.md").write_text("# A bundle")
    (folder / "old.engine").write_bytes(b"not of this bundle")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, uploaded: Path, tmp_path: Path) -> Iterator[StandInHub]:
    stand_in = StandInHub({COMMIT: files_of(uploaded)}, {"main": COMMIT})
    with stand_in_hub.serve(stand_in) as address:
        stand_in_hub.use(monkeypatch, address, tmp_path / "hub")
        yield stand_in


def test_the_files_of_the_bundle_are_fetched(hub: StandInHub, uploaded: Path) -> None:
    folder = fetch_bundle(REPO)
    bundle = open_bundle(folder)
    assert bundle.manifest == open_bundle(uploaded).manifest
    assert set(bundle.manifest.files) == {"layers.json", "onnx/dit.data"}
    for name in bundle.manifest.files:
        assert bundle.read(name) == (uploaded / name).read_bytes()
    assert sorted(files_of(folder)) == ["layers.json", MANIFEST, "onnx/dit.data"]


def test_it_is_there_without_the_hub(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_bundle(REPO)
    stand_in_hub.offline(monkeypatch)
    assert fetch_bundle(REPO) == folder
    assert fetch_bundle(f"{REPO}@{COMMIT}") == folder
    assert fetch_bundle(REPO, "main") == folder
    (folder / "onnx" / "dit.data").unlink()
    with pytest.raises(EnvironmentLacks, match=r"onnx/dit\.data was never fetched"):
        fetch_bundle(REPO)


@pytest.mark.parametrize("way", ["cut", "changed"])
def test_a_file_that_rotted_is_not_used(hub: StandInHub, way: str) -> None:
    """Sizes are compared at once, and a file of the wrong size is fetched again."""
    folder = fetch_bundle(REPO)
    blob = (folder / "onnx" / "dit.data").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + (b"" if way == "cut" else b"\0"))
    bundle = open_bundle(fetch_bundle(REPO))
    if way == "cut":
        assert bundle.read("onnx/dit.data") == bytes(range(256))
    else:
        with pytest.raises(VerificationFailed, match="differs from its hash"):
            bundle.read("onnx/dit.data")


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (MANIFEST, "holds no engine bundle"),
        ("onnx/dit.data", r"lists onnx/dit\.data, which the repository does not hold"),
    ],
)
def test_a_repository_without_a_whole_bundle_is_refused(
    hub: StandInHub, uploaded: Path, lacking: str, message: str
) -> None:
    (uploaded / lacking).unlink()
    hub.commits[COMMIT] = files_of(uploaded)
    with pytest.raises(BadInput, match=message) as refused:
        fetch_bundle(REPO)
    assert REPO in str(refused.value)


def test_a_checkpoint_is_told_from_a_bundle(hub: StandInHub) -> None:
    hub.commits[COMMIT] = {"model_index.json": b"{}"}
    with pytest.raises(BadInput, match=f"checkpoint.*build-engine --checkpoint {REPO}"):
        fetch_bundle(REPO)


def test_a_manifest_of_another_tool_is_refused(hub: StandInHub, uploaded: Path) -> None:
    (uploaded / MANIFEST).write_text('{"manifest_version": 3}')
    hub.commits[COMMIT] = files_of(uploaded)
    with pytest.raises(BadInput, match="schema version") as refused:
        fetch_bundle(REPO)
    assert REPO in str(refused.value)


def test_a_plain_copy_of_the_cache_opens(hub: StandInHub, tmp_path: Path) -> None:
    folder = fetch_bundle(REPO)
    shutil.move(tmp_path / "hub", tmp_path / "moved")
    moved = tmp_path / "moved" / folder.relative_to(tmp_path / "hub")
    assert open_bundle(moved).read("onnx/dit.data") == bytes(range(256))
