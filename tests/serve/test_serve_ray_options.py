"""Options of the application on Ray Serve, and the config file to copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from fastwan.errors import BadInput
from fastwan.serve.ray.options import Options

FILE = Path("src/fastwan/serve/ray/serve.yaml")


@pytest.fixture
def config(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / FILE).read_text()))


def options(**given: Any) -> Options:
    return Options(bundle=Path("bundle"), folder=Path("videos"), **given)


def test_the_config_file_is_what_ray_serve_takes(config: dict[str, Any]) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="needs the extra serve-ray")
    deploy = schema.ServeDeploySchema.model_validate(config)
    assert deploy.applications[0].import_path == "fastwan.serve.ray.application:build"
    with pytest.raises(ValidationError):
        schema.ServeDeploySchema.model_validate({**config, "proxy_location": "Nowhere"})


def test_the_args_of_the_config_file_are_options(config: dict[str, Any]) -> None:
    args = config["applications"][0]["args"]
    told = Options.model_validate(args)
    assert told.host == config["http_options"]["host"]
    assert told.settings().slots == told.max_replicas == 8
    with pytest.raises(ValidationError):
        Options.model_validate({**args, "replica": 2})


@pytest.mark.parametrize(
    ("device", "gpus", "cpus"), [("cuda", 1, 0), ("emulated", 1, 0), ("cpu", 0, 0.25)]
)
def test_a_replica_takes_a_gpu_or_a_share_of_the_cpus(device: str, gpus: int, cpus: float) -> None:
    actor = options(device=device).replica()["ray_actor_options"]
    assert (actor["num_gpus"], actor["num_cpus"]) == (gpus, cpus)


@pytest.mark.parametrize(("most", "slots"), [(None, 2), (2, 2), (5, 5)])
def test_there_are_as_many_slots_as_replicas_may_be(most: int | None, slots: int) -> None:
    told = options(replicas=2, max_replicas=most)
    assert told.settings().slots == slots
    scaling = told.replica()["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, slots)


def test_fewer_replicas_at_most_than_always_are_refused() -> None:
    with pytest.raises(BadInput, match="at most 1 replicas, and always 2"):
        options(replicas=2, max_replicas=1).settings()


def test_ray_waits_for_a_drain() -> None:
    told = options(limits={"drain_seconds": 7})
    assert told.ingress()["graceful_shutdown_timeout_s"] > 7
    assert told.replica()["graceful_shutdown_timeout_s"] > 7
