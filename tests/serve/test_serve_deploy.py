"""Docker files and compose file: what they refer to is there, and every base is pinned."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fastwan.cli import COMMANDS
from testkit.declared import declared_requirements

FOLDER = Path("src/fastwan/serve/deploy")
DOCKERFILES = ("runtime.Dockerfile", "builder.Dockerfile")
_PINNED = re.compile(r"[a-z0-9/.-]+(:v?\d+\.\d+\.\d+[a-z0-9.-]*|@sha256:[0-9a-f]{64})")


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Instructions of a Docker file and what follows each, lines that go on put together."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, " ".join(rest.split())


def faults(root: Path, text: str) -> list[str]:
    """What of a Docker file is not pinned, or refers to what the repository has not."""
    found = []
    extras = declared_requirements(root).keys()
    for word, rest in instructions(text):
        if word == "FROM" and not _PINNED.fullmatch(rest.split()[0]):
            found.append(f"not pinned: {rest}")
        if word == "COPY" and "--from=" not in rest:
            *names, _ = shlex.split(rest)
            found += [f"not there: {name}" for name in names if not (root / name).exists()]
        if word == "RUN":
            named = [
                each for group in re.findall(r"\[([a-z,-]+)\]", rest) for each in group.split(",")
            ]
            found += [f"no extra: {each}" for each in named if each not in extras]
            commands = re.findall(r"fastwan-export ([a-z-]+)", rest)
            found += [f"no command: {each}" for each in commands if each not in COMMANDS]
        if word == "CMD":
            command = json.loads(rest)[0]
            found += [f"no command: {command}"] * (command not in (*COMMANDS, "--help"))
    return found


@pytest.fixture
def compose(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / FOLDER / "compose.yaml").read_text()))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_docker_file_is_pinned_and_refers_to_what_is_there(root: Path, name: str) -> None:
    text = (root / FOLDER / name).read_text()
    assert {"FROM", "COPY", "RUN", "ENTRYPOINT"} <= {word for word, _ in instructions(text)}
    assert faults(root, text) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("FROM python:3", "not pinned: python:3"),
        ("FROM python:latest AS x", "not pinned: python:latest AS x"),
        ("COPY nowhere ./", "not there: nowhere"),
        ("RUN pip install \\\n  '.[gpu,none]'", "no extra: none"),
        ("RUN fastwan-export build-plugins", "no command: build-plugins"),
        ('CMD ["server"]', "no command: server"),
        ("RUN fastwan-export build-plugin", None),
    ],
)
def test_a_fault_of_a_docker_file_is_seen(root: Path, line: str, fault: str | None) -> None:
    assert faults(root, f"{line}\n") == ([] if fault is None else [fault])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(root: Path, name: str) -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint")
    subprocess.run([hadolint, str(root / FOLDER / name)], check=True)


def test_the_compose_file_fits_its_schema(compose: dict[str, Any]) -> None:
    package = pytest.importorskip("check_jsonschema", reason="needs check-jsonschema")
    folder = files(package) / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    jsonschema.validate(compose, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**compose, "service": {}}, schema)


def test_the_compose_file_refers_to_what_is_there(root: Path, compose: dict[str, Any]) -> None:
    server, prometheus = compose["services"]["server"], compose["services"]["prometheus"]
    build = server["build"]
    context = (root / FOLDER / build["context"]).resolve()
    assert context == root.resolve()
    assert (context / build["dockerfile"]).is_file()
    assert server["command"][0] in COMMANDS
    assert _PINNED.fullmatch(prometheus["image"])
    config = prometheus["volumes"][0].split(":")[0]
    assert (root / FOLDER / config).is_file()


def test_prometheus_asks_the_server_of_the_compose_file(
    root: Path, compose: dict[str, Any]
) -> None:
    text = (root / FOLDER / "prometheus.yml").read_text()
    (job,) = yaml.safe_load(text)["scrape_configs"]
    name, port = job["static_configs"][0]["targets"][0].split(":")
    assert compose["services"][name]["ports"][0].endswith(f":{port}")
    assert job["metrics_path"] == "/metrics"


def test_docker_waits_longer_than_a_drain(compose: dict[str, Any]) -> None:
    server = compose["services"]["server"]
    command = server["command"]
    drain = int(command[command.index("--drain-seconds") + 1])
    assert int(server["stop_grace_period"].removesuffix("s")) > drain
