"""The video as an answer: ranges as RFC 9110 has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fastwan.runtime.seal import is_sealed
from testkit.fake_player import until


@pytest.fixture
def video(client: TestClient, tmp_path: Path) -> tuple[str, bytes]:
    """Address and bytes of a completed video."""
    job_id = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    until(client, job_id, "completed")
    path = tmp_path / "videos" / "videos" / f"{job_id}.mp4"
    assert is_sealed(path)
    return f"/v1/videos/{job_id}/content", path.read_bytes()


def test_all_of_it(client: TestClient, video: tuple[str, bytes]) -> None:
    url, data = video
    answer = client.get(url)
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(len(data))
    assert client.get(url, params={"variant": "video"}).content == data
    assert client.get(url, params={"variant": "thumbnail"}).status_code == 400


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=5-5", 5, 6),
        ("bytes=100-", 100, None),
        ("bytes=-7", -7, None),
        ("bytes=0-999999999", 0, None),
        ("bytes=-999999999", 0, None),
    ],
)
def test_a_range_of_it(
    client: TestClient, video: tuple[str, bytes], asked: str, begin: int, end: int | None
) -> None:
    url, data = video
    answer = client.get(url, headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, data[begin:end])
    first = begin % len(data)
    last = first + len(answer.content) - 1
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("asked", ["bytes={size}-", "bytes={size}-{size}", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(
    client: TestClient, video: tuple[str, bytes], asked: str
) -> None:
    url, data = video
    answer = client.get(url, headers={"range": asked.format(size=len(data))})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(data)}"
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "asked", ["bytes=9-0", "bytes=-", "bytes=a-b", "pages=0-1", "bytes=0-1,3-4", "bytes=0-1 x"]
)
def test_what_is_no_range_is_answered_with_all_of_it(
    client: TestClient, video: tuple[str, bytes], asked: str
) -> None:
    url, data = video
    answer = client.get(url, headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, data)


def test_a_range_of_another_version_is_not_sent(
    client: TestClient, video: tuple[str, bytes]
) -> None:
    url, data = video
    tag = client.get(url).headers["etag"]
    same = client.get(url, headers={"range": "bytes=0-9", "if-range": tag})
    assert (same.status_code, same.content) == (206, data[:10])
    other = client.get(url, headers={"range": "bytes=0-9", "if-range": '"other"'})
    assert (other.status_code, other.content) == (200, data)
    assert client.get(url, headers={"if-none-match": tag}).status_code == 304
    assert client.get(url, headers={"if-none-match": '"other"'}).status_code == 200


def test_a_video_that_somebody_deleted_is_not_there(
    client: TestClient, video: tuple[str, bytes], tmp_path: Path
) -> None:
    url, _ = video
    (file,) = (tmp_path / "videos" / "videos").iterdir()
    file.unlink()
    assert client.get(url).status_code == 404


def test_a_head_is_that_of_the_whole_video(client: TestClient, video: tuple[str, bytes]) -> None:
    """RFC 9110, section 14.2: a range is asked for by GET alone."""
    url, data = video
    whole = client.get(url)
    for asked in ({}, {"range": "bytes=0-9"}, {"range": f"bytes={len(data)}-"}):
        answer = client.head(url, headers=asked)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers == whole.headers
    assert whole.headers["content-length"] == str(len(data))
    known = client.head(url, headers={"if-none-match": whole.headers["etag"]})
    assert known.status_code == 304
