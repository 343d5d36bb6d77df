"""The routes: their answers, their refusals, and whom they serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from testkit.fake_player import FakePlayer, serving, until

JSON = {"content-type": "application/json"}
TOKENS = ("alpha-alpha-alpha", "beta-beta-beta-beta")


def error(answer: Any) -> dict[str, Any]:
    """The error of an answer, which has the form of the API."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return dict(body["error"])


@pytest.mark.parametrize("kind", ["json", "data", "multipart"])
def test_a_body_is_json_or_a_form(client: TestClient, kind: str) -> None:
    fields = {"prompt": "ein Fuchs im Schnee, 狐", "seed": "7", "seconds": "1", "size": "48x32"}
    if kind == "json":
        answer = client.post("/v1/videos", json={**fields, "seed": 7, "seconds": 1})
    elif kind == "data":
        answer = client.post("/v1/videos", data=fields)
    else:
        answer = client.post("/v1/videos", files={k: (None, v) for k, v in fields.items()})
    video = answer.json()
    assert (video["prompt"], video["seed"], video["seconds"]) == (fields["prompt"], 7, "0.3125")
    assert (video["object"], video["model"], video["size"]) == ("video", "fake", "48x32")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "x" * 4097}, "prompt"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": 1 << 64}, "seed"),
        ({"prompt": "a", "seed": "7"}, "seed"),
        ({"prompt": "a", "seed": True}, "seed"),
        ({"prompt": "a", "size": "1280x720"}, "size"),
        ({"prompt": "a", "seconds": 8}, "seconds"),
        ({"prompt": "a", "sampler": "euler"}, "sampler"),
        ({"prompt": "a", "model": "sora-2"}, "model"),
        ({"prompt": "a", "guidance_scale": 5}, "guidance_scale"),
        ({"prompt": "a", "input_reference": "x"}, "input_reference"),
        ({"prompt": "a", "path": "/etc/passwd"}, "path"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    answer = client.post("/v1/videos", json=fields)
    assert answer.status_code == 400
    found = error(answer)
    assert (found["type"], found["param"]) == ("invalid_request_error", param)
    assert client.post("/v1/videos", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"prompt": "a"}', JSON, 200),
        (b'{"prompt": "a", "prompt": "b"}', JSON, 400),
        (b'{"prompt": NaN}', JSON, 400),
        (b"[]", JSON, 400),
        (b"", JSON, 400),
        (b'{"prompt": "a"}', {"content-type": "text/plain"}, 415),
        (b'{"prompt": "a"}', {}, 415),
        (b"prompt=a&prompt=b", {"content-type": "application/x-www-form-urlencoded"}, 400),
        (b"prompt=a", {"content-type": "application/x-www-form-urlencoded"}, 200),
        (b"--", {"content-type": "multipart/form-data"}, 400),
        (b"x" * 65537, JSON, 413),
        (b'{"prompt": "a"}' + b" " * (65536 - 15), JSON, 200),
    ],
)
def test_a_body_is_read_strictly(
    client: TestClient, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = client.post("/v1/videos", content=content, headers=headers)
    assert answer.status_code == status
    if status != 200:
        assert error(answer)["message"]


@pytest.mark.parametrize(("chunks", "status"), [(66, 413), (60, 400)])
def test_a_body_of_undeclared_length_is_bounded(
    client: TestClient, chunks: int, status: int
) -> None:
    content = (b"x" * 1000 for _ in range(chunks))
    assert client.post("/v1/videos", content=content, headers=JSON).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/videos/video_0", 404),
        ("GET", "/v1/videos/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/videos/..%2fjobs.sqlite3/content", 404),
        ("DELETE", "/v1/videos/lock", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/videos?limit=0", 400),
        ("GET", "/v1/videos?limit=101", 400),
        ("GET", "/v1/videos?order=up", 400),
    ],
)
def test_refusals_have_the_form_of_the_api(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert error(answer)["message"]


def test_another_method_is_answered_with_those_there_are(client: TestClient) -> None:
    answer = client.put("/v1/videos")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert error(answer)["type"] == "invalid_request_error"


def test_every_get_has_a_head(client: TestClient) -> None:
    job_id = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    until(client, job_id, "completed")
    documented = client.get("/openapi.json").json()["paths"]
    paths = [path for path, operations in documented.items() if "get" in operations]
    assert len(paths) > 8
    for path in (*paths, "/", "/openapi.json", "/page/app.js", "/v1/videos/video_0"):
        url = path.format(video_id=job_id, model_id="fake")
        whole, head = client.get(url), client.head(url)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        if url != "/metrics":  # it counts the request before
            assert head.headers.get("content-length") == whole.headers.get("content-length")
    answer = client.head(f"/v1/videos/{job_id}/cancel")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_an_error_of_the_server_tells_no_more_than_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "videos") as client:
        secret = RuntimeError("/a/secret/path")
        service = client.app.state.service  # type: ignore[attr-defined]
        monkeypatch.setattr(service.store, "page", lambda **_: (_ for _ in ()).throw(secret))
        loose = TestClient(client.app, "http://127.0.0.1", raise_server_exceptions=False)
        answer = loose.get("/v1/videos")
    assert answer.status_code == 500
    assert error(answer)["message"] == "Internal Server Error: RuntimeError"


def test_jobs_are_listed_in_pages(client: TestClient) -> None:
    ids = [client.post("/v1/videos", json={"prompt": "a"}).json()["id"] for _ in range(3)]
    page = client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in page["data"]] == ids[:0:-1]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)
    rest = client.get("/v1/videos", params={"limit": 2, "after": page["last_id"]}).json()
    assert ([video["id"] for video in rest["data"]], rest["has_more"]) == (ids[:1], False)
    oldest = client.get("/v1/videos", params={"order": "asc"}).json()
    assert [video["id"] for video in oldest["data"]] == ids


def test_the_model_says_what_it_can_make(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get("/v1/models/fake").json()
    assert (model["sizes"], model["seconds"], model["num_frames"]) == (["48x32"], ["0.3125"], [5])
    assert (model["samplers"], model["fps"], model["device"]) == (["dmd"], 16, "cpu")


def test_the_server_is_ready_when_it_is_warm(tmp_path: Path) -> None:
    player = FakePlayer()
    with serving(tmp_path / "videos", player) as client:
        client.app.state.service.worker.ready.wait()  # type: ignore[attr-defined]
        assert client.get("/ready").json() == {"status": "ok", "waiting": 0}
        client.app.state.service.worker.ready.clear()  # type: ignore[attr-defined]
        assert client.get("/ready").status_code == 503
        assert client.get("/health").json() == {"status": "starting", "waiting": 0}


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKENS[0]}", 200),
        (f"bearer {TOKENS[1]}", 200),
        (f"Bearer {TOKENS[0]}x", 401),
        (f"Basic {TOKENS[0]}", 401),
        ("Bearer", 401),
        (None, 401),
    ],
)
@pytest.mark.parametrize("path", ["/v1/videos", "/v1/models", "/v1/videos/video_0"])
def test_a_token_is_asked_for_where_there_are_tokens(
    tmp_path: Path, authorization: str | None, status: int, path: str
) -> None:
    with serving(tmp_path / "videos", tokens=TOKENS) as client:
        headers = {} if authorization is None else {"authorization": authorization}
        answer = client.get(path, headers=headers)
        if status == 401:
            assert error(answer)["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.status_code == (404 if path.endswith("_0") and status == 200 else status)
        assert client.get("/health").status_code == 200


def test_a_client_sees_its_own_jobs_alone(tmp_path: Path) -> None:
    alpha, beta = ({"authorization": f"Bearer {token}"} for token in TOKENS)
    with serving(tmp_path / "videos", tokens=TOKENS) as client:
        job_id = client.post("/v1/videos", json={"prompt": "a"}, headers=alpha).json()["id"]
        client.headers.update(alpha)
        until(client, job_id, "completed")
        client.headers.pop("authorization")
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/cancel")):
            answer = client.request(method, f"/v1/videos/{job_id}{path}", headers=beta)
            assert answer.status_code == 404, (method, path)
        assert client.get("/v1/videos", headers=beta).json()["data"] == []
        assert len(client.get("/v1/videos", headers=alpha).json()["data"]) == 1
        assert client.get(f"/v1/videos/{job_id}/content", headers=alpha).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"origin": "https://example.com"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "example.com", "origin": "http://example.com"}, 403),
        ({"host": "example.com"}, 403),
        ({"host": "[::1"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    answer = client.post("/v1/videos", data={"prompt": "a"}, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert error(answer)["code"] == "other_origin"


@pytest.mark.parametrize(
    "settings", [{"tokens": TOKENS}, {"host": "0.0.0.0"}], ids=["tokens", "not local"]
)
def test_a_server_that_is_not_local_has_any_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    headers = {"host": "example.com", "authorization": f"Bearer {TOKENS[0]}"}
    with serving(tmp_path / "videos", **settings) as client:
        assert client.get("/v1/models", headers=headers).status_code == 200
        headers["origin"] = "http://example.org"
        assert client.get("/v1/models", headers=headers).status_code == 403


def test_figures_for_prometheus(client: TestClient, player: FakePlayer) -> None:
    job_id = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    until(client, job_id, "completed")
    client.get("/nothing/at/all")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    for line in (
        'fastwan_requests_total{method="POST",route="/v1/videos",status="200"} 1.0',
        'fastwan_requests_total{method="GET",route="other",status="404"} 1.0',
        'fastwan_videos_total{status="completed"} 1.0',
        'fastwan_stage_seconds_count{stage="step"} 3.0',
        'fastwan_stage_seconds_count{stage="write"} 1.0',
        "fastwan_queue_depth 0.0",
        'fastwan_launch{mode="none"} 1.0',
        'fastwan_launch{mode="graph"} 0.0',
    ):
        assert line in lines
    assert job_id not in answer.text
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)
