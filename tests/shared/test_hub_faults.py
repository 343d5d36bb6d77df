"""Faults between the hub and its cache: what arrives is whole, or refused in one line of words."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastwan.errors import BadInput, EnvironmentLacks, FastWanError
from fastwan.hub.cache import CachedRepository
from testkit import stand_in_hub
from testkit.hub_repository import FIRST, OLD, content, fetch, of, two_commits
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
    stand_in_hub.online(monkeypatch)
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
    stand_in_hub.online(monkeypatch)
    assert content(fetch()) == of(FIRST)
    stand_in_hub.offline(monkeypatch)
    assert content(fetch()) == of(FIRST)


def test_what_a_user_proves_later_is_not_hashed_twice(hub: StandInHub) -> None:
    blob = (fetch() / "weights/b.safetensors").resolve()
    blob.write_bytes(flipped(blob.read_bytes()))
    assert content(fetch(proven=False)) != of(FIRST)
    assert content(fetch(proven=True)) == of(FIRST)


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
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "cannot be used.*HF_HOME"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "cannot be used.*HF_HOME"),
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
    with pytest.raises(EnvironmentLacks, match=message):
        fetch()


def test_a_cache_below_a_file_is_one_line(hub: StandInHub, home: Path) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file")
    with pytest.raises(EnvironmentLacks, match=r"cannot be used.*HF_HOME"):
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
