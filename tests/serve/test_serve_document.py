"""The OpenAPI document, and the server held against it by schemathesis."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fastwan.config import VideoShape
from testkit.fake_player import FakePlayer, serving
from testkit.server_process import ServerProcess, started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = str(tmp_path_factory.mktemp("served"))
    with started("-m", "testkit.fake_server", folder, "0") as server:
        yield server


ALL = "examples,coverage,fuzzing,stateful"


@pytest.mark.parametrize(
    ("phases", "examples"),
    [("fuzzing,stateful", 3), pytest.param(ALL, 200, marks=pytest.mark.slow)],
)
def test_the_server_does_what_its_document_says(
    server: ServerProcess, phases: str, examples: int, tmp_path: Path
) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    assert shutil.which(program), "schemathesis is not installed"
    done = subprocess.run(
        [
            program, "run", f"{server.url}/openapi.json", "--max-examples", str(examples),
            "--phases", phases, "--seed", "1", "--no-color", "--generation-database", "none",
        ],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "No issues found" in done.stdout


def test_the_document_has_what_the_bundle_can_make(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["CreateVideo"]["properties"]
    assert fields["size"]["enum"] == ["48x32", None]
    assert fields["seconds"]["enum"] == ["0.3125", "1", 0.3125, 1.0, None]
    assert fields["model"]["enum"] == ["fake", None]
    assert fields["prompt"]["maxLength"] == 4096
    assert "negative_prompt" not in fields
    assert schemas["CreateVideoForm"]["properties"]["num_frames"]["enum"] == [5]
    assert all(field["description"] for field in fields.values())


def test_the_document_of_a_guided_bundle_of_two_shapes(tmp_path: Path) -> None:
    shapes = tuple(VideoShape(height=32, width=w, num_frames=5) for w in (48, 64))
    with serving(tmp_path / "videos", FakePlayer(guided=True, shapes=shapes)) as client:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["CreateVideoForm"]["properties"]
    assert fields["size"]["enum"] == ["48x32", "64x32"]
    assert fields["num_frames"]["enum"] == [5]
    assert fields["negative_prompt"]["maxLength"] == 4096
    assert "maximum" not in fields["guidance_scale"]


@pytest.mark.parametrize("tokens", [(), ("alpha-alpha-alpha",)])
def test_tokens_are_documented_where_they_are_needed(
    tmp_path: Path, tokens: tuple[str, ...]
) -> None:
    with serving(tmp_path / "videos", tokens=tokens) as client:
        document = client.get("/openapi.json").json()
    assert ("security" in document["paths"]["/v1/videos"]["get"]) is bool(tokens)
    assert ("securitySchemes" in document["components"]) is bool(tokens)
    assert "security" not in document["paths"]["/health"]["get"]
