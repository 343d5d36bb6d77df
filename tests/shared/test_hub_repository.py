"""Repositories of a stand-in hub on loopback: fetched once, pinned, and there without the hub."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastwan.errors import BadInput, EnvironmentLacks, FastWanWarning
from fastwan.hub.cache import CachedRepository
from fastwan.hub.repository import open_repository
from testkit import stand_in_hub
from testkit.hub_repository import FIRST, NEEDED, NEW, OLD, SECOND, content, fetch, of, two_commits
from testkit.stand_in_hub import REPO, StandInHub

pytest.importorskip("huggingface_hub")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[StandInHub]:
    with two_commits(monkeypatch, home) as stand_in:
        yield stand_in


@pytest.fixture
def cached(home: Path) -> CachedRepository:
    return CachedRepository(home, REPO)


def test_only_what_is_needed_is_fetched(hub: StandInHub, cached: CachedRepository) -> None:
    repository = open_repository(REPO)
    assert repository.commit == OLD
    assert repository.files.keys() == FIRST.keys()
    assert repository.whole
    folder = repository.get(NEEDED)
    assert folder == cached.snapshot(OLD)
    assert sorted(cached.fetched(OLD)) == NEEDED
    assert content(folder) == of(FIRST)


@pytest.mark.parametrize("way", ["gone", "offline", "out of order", "deleted", "gated"])
def test_what_was_fetched_is_there_without_the_hub(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    folder = fetch()
    hub.asked.clear()
    if way == "gone":
        hub.stop()
    elif way == "offline":
        stand_in_hub.offline(monkeypatch)
    else:
        code = {"deleted": "RepoNotFound", "gated": "GatedRepo"}.get(way, "")
        hub.refusal = (404 if way == "deleted" else 503, {"X-Error-Code": code} if code else {})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert fetch() == folder
        assert fetch(f"{REPO}@main") == folder
    assert content(folder) == of(FIRST)
    # Who asked for it is not told.
    mine = [each for each in told if each.category is FastWanWarning]
    assert len(mine) == (0 if way == "offline" else 2)
    assert all(OLD in str(each.message) for each in mine)
    if way == "offline":
        assert hub.asked == []


@pytest.mark.parametrize("written", ["{repo}@{commit}", "{repo}"])
def test_a_commit_given_in_full_is_not_asked_about(hub: StandInHub, written: str) -> None:
    source = written.format(repo=REPO, commit=OLD)
    revision = None if "@" in source else OLD
    fetch(source, revision)
    hub.asked.clear()
    assert content(fetch(source, revision)) == of(FIRST)
    assert hub.asked == []


def test_a_revision_is_the_one_that_is_taken(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though both are in the cache, and whichever was fetched last."""
    for first, last in ((OLD, NEW), (NEW, OLD)):
        assert content(fetch(REPO, first))["config.json"] == FIRST["config.json"] or first == NEW
        assert content(fetch(REPO, last)) == of(FIRST if last == OLD else SECOND)
    fetch(f"{REPO}@v1")
    hub.refs["main"] = NEW
    fetch()
    stand_in_hub.offline(monkeypatch)
    assert content(fetch(f"{REPO}@v1")) == of(FIRST)
    assert content(fetch()) == of(SECOND)
    assert content(fetch(REPO, OLD)) == of(FIRST)
    assert content(fetch(REPO, NEW)) == of(SECOND)


def test_an_interrupted_download_of_a_new_commit_leaves_the_old_one(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch()
    hub.refs["main"] = NEW
    hub.spoil["weights/b.safetensors"] = lambda whole: whole[:500]
    with pytest.raises(EnvironmentLacks, match="download failed"):
        fetch()
    stand_in_hub.offline(monkeypatch)
    assert content(fetch()) == of(FIRST)
    with pytest.raises(EnvironmentLacks, match=r"weights/b\.safetensors was never fetched"):
        fetch(REPO, NEW)


def test_files_that_were_never_fetched_are_named(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_repository(REPO).get(["config.json"])
    fetch(REPO, NEW)
    open_repository(REPO).keep()
    stand_in_hub.offline(monkeypatch)
    with pytest.raises(EnvironmentLacks) as refused:
        fetch()
    text = str(refused.value)
    assert "weights/a[1].safetensors, weights/b.safetensors were never fetched" in text
    assert f"give the revision {NEW}" in text
    assert "unset it" in text
    assert "config.json" not in text


def test_without_a_listing_what_was_fetched_is_known(
    hub: StandInHub, cached: CachedRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a cache that an older huggingface_hub filled."""
    open_repository(REPO).get(NEEDED[:2])
    open_repository(REPO).keep()
    shutil.rmtree(cached.folder / "trees")
    stand_in_hub.offline(monkeypatch)
    repository = open_repository(REPO)
    assert not repository.whole
    assert sorted(repository.files) == NEEDED[:2]
    repository.get(NEEDED[:2])
    with pytest.raises(EnvironmentLacks, match=r"weights/b\.safetensors was never fetched"):
        repository.get(NEEDED)


def test_a_helpful_file_is_done_without(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch()
    stand_in_hub.offline(monkeypatch)
    assert not (fetch(helpful=["README.md"]) / "README.md").exists()
    with pytest.raises(EnvironmentLacks, match=r"README\.md was never fetched"):
        open_repository(REPO).get([*NEEDED, "README.md"])
    monkeypatch.undo()


def test_a_helpful_file_is_fetched_where_it_can_be(hub: StandInHub) -> None:
    assert (fetch(helpful=["README.md"]) / "README.md").read_bytes() == FIRST["README.md"]


def test_a_hub_that_tells_no_hashes_will_do(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tells_hashes = False
    assert content(fetch()) == of(FIRST)
    stand_in_hub.offline(monkeypatch)
    assert content(fetch()) == of(FIRST)


@pytest.mark.parametrize("text", ["", "main", OLD[:20], "../" + OLD, "\xff"])
def test_a_damaged_note_of_a_branch_is_no_guess(
    hub: StandInHub, cached: CachedRepository, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    fetch()
    (cached.folder / "refs" / "main").write_text(text, encoding="latin-1")
    stand_in_hub.offline(monkeypatch)
    with pytest.raises(EnvironmentLacks, match=f"holds only {OLD} of this model"):
        fetch()
    assert content(fetch(REPO, OLD)) == of(FIRST)


def test_a_damaged_list_of_files_counts_as_none(
    hub: StandInHub, cached: CachedRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch()
    (cached.folder / "trees" / f"{OLD}.json").write_text('{"files": {"config.json": 3}}')
    stand_in_hub.offline(monkeypatch)
    assert not open_repository(REPO).whole
    assert content(fetch()) == of(FIRST)


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        (f"{REPO}@{OLD}", NEW, "two revisions"),
        (REPO, "../../refs", "is no revision"),
        (REPO, "-x", "is no revision"),
        (REPO, "a b", "is no revision"),
        (REPO, "", "is no revision"),
        ("owner/..", None, "not a model's name"),
        ("name", None, "not a model's name"),
        ("owner/na--me", None, "not a model's name"),
    ],
)
def test_a_name_that_is_none_is_refused(
    hub: StandInHub, source: str, revision: str | None, message: str
) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        open_repository(source, revision)
    assert hub.asked == []
    assert open_repository(f"{REPO}@{OLD}", OLD).commit == OLD


def test_a_file_outside_the_repository_is_not_taken(hub: StandInHub) -> None:
    hub.commits[OLD] = FIRST | {"weights/../../../x": b"", "/etc/passwd": b""}
    assert open_repository(REPO).files.keys() == FIRST.keys()
