"""Repositories of a stand-in hub on loopback: fetched whole, pinned, and there without the hub."""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastwan.errors import BadInput, EnvironmentLacks, FastWanError, FastWanWarning
from fastwan.hub.cache import CachedRepository
from fastwan.hub.repository import open_repository
from testkit import stand_in_hub
from testkit.stand_in_hub import COMMITS, REPO, StandInHub

huggingface_hub = pytest.importorskip("huggingface_hub")

OLD, NEW, UNKNOWN = COMMITS
FIRST = {
    "README.md": b"# A model",
    "config.json": b'{"a": 1}',
    "weights/a[1].safetensors": bytes(range(256)) * 40,
    "weights/b.safetensors": bytes(1000),
}
SECOND = FIRST | {"config.json": b'{"a": 2}', "weights/b.safetensors": bytes(1001)}
NEEDED = ["config.json", "weights/a[1].safetensors", "weights/b.safetensors"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[StandInHub]:
    """A hub whose main branch is at the older of two commits."""
    stand_in = StandInHub({OLD: FIRST, NEW: SECOND}, {"main": OLD, "v1": OLD})
    with stand_in_hub.serve(stand_in) as address:
        stand_in_hub.use(monkeypatch, address, home)
        yield stand_in


@pytest.fixture
def cached(home: Path) -> CachedRepository:
    return CachedRepository(home, REPO)


def fetch(source: str = REPO, revision: str | None = None, **options: Any) -> Path:
    """Fetch `NEEDED` as a build does."""
    repository = open_repository(source, revision)
    folder = repository.get(NEEDED, **options)
    repository.keep()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in NEEDED}


def of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: files[name] for name in NEEDED}


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


def flipped(whole: bytes) -> bytes:
    return bytes([whole[0] ^ 1]) + whole[1:]


@pytest.mark.parametrize("fault", [lambda whole: whole[:500], lambda whole: b"", flipped])
@pytest.mark.parametrize("times", [1, 1000])
def test_what_arrives_is_whole_or_refused(
    hub: StandInHub,
    cached: CachedRepository,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[bytes], bytes],
    times: int,
) -> None:
    """A connection that drops, and a content that is another, once or every time."""
    left = iter(range(times))
    name = "weights/b.safetensors"
    hub.spoil[name] = lambda whole: whole if next(left, None) is None else fault(whole)
    if times == 1:
        assert content(fetch()) == of(FIRST)
        return
    with pytest.raises(EnvironmentLacks, match=r"download failed|arrived with other content"):
        fetch()
    assert list(cached.folder.rglob("*.incomplete")) == []
    stand_in_hub.offline(monkeypatch)
    with pytest.raises(EnvironmentLacks):
        fetch(REPO, OLD)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.spoil.clear()
    assert content(fetch()) == of(FIRST)


@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_a_wrong_length_is_refused(hub: StandInHub, difference: int) -> None:
    hub.announced["weights/b.safetensors"] = 1000 + difference
    if difference == 0:
        assert content(fetch()) == of(FIRST)
        return
    with pytest.raises(EnvironmentLacks, match=r"download failed|arrived with other content"):
        fetch()


@pytest.mark.parametrize("fault", [lambda whole: whole[:500], flipped])
def test_a_file_that_rotted_in_the_cache_is_fetched_again(
    hub: StandInHub,
    cached: CachedRepository,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[bytes], bytes],
) -> None:
    blob = (fetch() / "weights/b.safetensors").resolve()
    blob.write_bytes(fault(blob.read_bytes()))
    stand_in_hub.offline(monkeypatch)
    with pytest.raises(EnvironmentLacks, match=r"b\.safetensors was damaged in the hub's cache"):
        fetch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert content(fetch()) == of(FIRST)
    stand_in_hub.offline(monkeypatch)
    assert content(fetch()) == of(FIRST)


def test_what_a_user_proves_later_is_not_hashed_twice(hub: StandInHub) -> None:
    blob = (fetch() / "weights/b.safetensors").resolve()
    blob.write_bytes(flipped(blob.read_bytes()))
    assert content(fetch(proven=False)) != of(FIRST)
    assert content(fetch(proven=True)) == of(FIRST)


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


REFUSALS = [
    ("repository", (404, {"X-Error-Code": "RepoNotFound"}), BadInput, "neither a folder nor"),
    ("repository", (401, {}), BadInput, "neither a folder nor a model"),
    ("repository", (404, {}), BadInput, "neither a folder nor a model"),
    ("files", (401, {}), BadInput, "neither a folder nor a model"),
    ("files", (403, {}), BadInput, "forbids access"),
    ("files", (404, {}), EnvironmentLacks, "download failed"),
    ("files", (503, {}), EnvironmentLacks, "out of order"),
    ("repository", (403, {"X-Error-Code": "GatedRepo"}), BadInput, "has to be granted"),
    ("files", (401, {"X-Error-Code": "GatedRepo"}), BadInput, "has to be granted"),
    ("repository", (404, {"X-Error-Code": "RevisionNotFound"}), BadInput, "no such revision"),
    ("repository", (403, {"X-Error-Message": "Access to this resource is disabled."}), BadInput,
     "was disabled"),
    ("repository", (403, {}), BadInput, "forbids access"),
    ("repository", (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
     EnvironmentLacks, "access token"),
    ("repository", (429, {}), EnvironmentLacks, "no more requests"),
    ("repository", (503, {}), EnvironmentLacks, "out of order"),
    ("repository", (200, {}), EnvironmentLacks, "cannot be reached"),
    ("files", (404, {"X-Error-Code": "EntryNotFound"}), EnvironmentLacks, "download failed"),
]  # fmt: skip


@pytest.mark.parametrize(("of_what", "answer", "kind", "message"), REFUSALS)
def test_a_refusal_is_one_line_in_words(
    hub: StandInHub,
    of_what: str,
    answer: tuple[int, dict[str, str]],
    kind: type[FastWanError],
    message: str,
) -> None:
    if of_what == "repository":
        hub.refusal = answer
    else:
        hub.file_refusal = answer
    with pytest.raises(kind, match=message) as refused:
        fetch()
    assert "\n" not in str(refused.value)
    assert REPO in str(refused.value)
    hub.refusal = hub.file_refusal = None
    assert content(fetch()) == of(FIRST)


def test_a_hub_that_is_not_there_is_one_line(hub: StandInHub) -> None:
    hub.stop()
    with pytest.raises(EnvironmentLacks, match=r"cannot be reached.*holds no copy.*local folder"):
        fetch()


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "HF_HUB_DOWNLOAD_TIMEOUT"])
def test_a_library_that_cannot_be_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails() -> Path:
        raise ValueError(f"invalid literal in {name}")

    monkeypatch.setattr("fastwan.hub.repository.hub_cache", fails)
    with pytest.raises(EnvironmentLacks, match=f"invalid literal in {name}.*HF_"):
        fetch()


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk of the hub's cache is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk of the hub's cache is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "cannot be written.*HF_HOME"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "cannot be written.*HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), "download failed: .*denied"),
    ],
)
def test_the_disks_refusal_is_one_line(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, failure: OSError, message: str
) -> None:
    def fails(*args: object, **options: object) -> None:
        try:
            raise failure
        except OSError as error:
            raise RuntimeError("a library's own") from error

    monkeypatch.setattr("fastwan.hub.repository.download", fails)
    expected = message if "cannot be" in message or "full" in message else "a library's own"
    with pytest.raises(EnvironmentLacks, match=expected):
        fetch()
    assert not isinstance(failure, BadInput)


def test_a_cache_below_a_file_is_one_line(hub: StandInHub, home: Path) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file")
    with pytest.raises(EnvironmentLacks, match=r"cannot be written.*HF_HOME"):
        fetch()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_full_cache_that_cannot_be_written_will_do(
    hub: StandInHub, cached: CachedRepository
) -> None:
    folder = fetch()
    for each in (cached.folder, *cached.folder.rglob("*")):
        if each.is_dir():
            each.chmod(0o555)
    try:
        assert fetch() == folder
    finally:
        for each in (cached.folder, *cached.folder.rglob("*")):
            if each.is_dir():
                each.chmod(0o755)


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
