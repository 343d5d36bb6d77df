"""The command over the tiny bundle on the CPU, asked by the official ``openai`` package."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.server_process import WAIT, ServerProcess, started, until_done

openai = pytest.importorskip("openai")

pytestmark = [
    pytest.mark.trt,
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served")
    words = ("serve", str(tiny_bundle), "--device", "cpu", "--port", "0", "--folder", str(folder))
    with started("-m", "fastwan", *words) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_video_is_the_one_that_generate_makes_alone(
    server: ServerProcess, client: openai.OpenAI, tiny_bundle: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.mp4"
    words = ["generate", str(tiny_bundle), "A red fox", "--seed", "7", "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "fastwan", *words, "-o", str(alone)], check=True)

    video = client.videos.create(prompt="A red fox", size="160x96", extra_body={"seed": 7})
    assert (video.object, video.size, video.prompt) == ("video", "160x96", "A red fox")
    with server.client() as plain:
        until_done(plain, video.id)
    done = client.videos.retrieve(video.id)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    assert done.completed_at is not None
    assert done.expires_at is not None
    assert client.videos.download_content(video.id).read() == alone.read_bytes()
    assert client.videos.download_content(video.id, variant="video").read() == alone.read_bytes()


def test_the_client_polls_lists_and_deletes(client: openai.OpenAI) -> None:
    made = [client.videos.create_and_poll(prompt=name, poll_interval_ms=20) for name in "ab"]
    assert [video.status for video in made] == ["completed"] * 2
    listed = [video.id for video in client.videos.list(limit=1)]  # asks page by page
    assert listed[:2] == [made[1].id, made[0].id]
    deleted = client.videos.delete(made[0].id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made[0].id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(made[0].id)
    assert client.videos.retrieve(made[1].id).status == "completed"


@pytest.mark.parametrize("fields", [{"size": "1280x720"}, {"seconds": "8"}, {"model": "sora-2"}])
def test_the_client_is_told_what_the_bundle_can_make(
    client: openai.OpenAI, fields: dict[str, str]
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt="a fox", **fields)  # type: ignore[arg-type]
    (name,) = fields
    assert refused.value.param == name
    (model,) = client.models.list().data
    can = {"size": "160x96", "seconds": "0.5625 or 1", "model": model.id}
    assert can[name] in refused.value.message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_its_jobs_stay(
    tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = ("-m", "fastwan", "serve", str(tiny_bundle), "--device", "cpu", "--port", "0")
    folder = ("--folder", str(tmp_path / "served"))
    with started(*words, *folder) as server:
        with server.client() as client:
            ids = [
                client.post("/v1/videos", json={"prompt": "a fox", "seed": seed}).json()["id"]
                for seed in range(4)
            ]
            until_done(client, ids[0])
        server.process.send_signal(number)
        assert server.process.wait(WAIT) == 0
        assert not any("error" in line or "Traceback" in line for line in server.lines)
    with started(*words, *folder) as server, server.client() as client:
        assert [until_done(client, job_id)["status"] for job_id in ids] == ["completed"] * 4
