"""What a Ray Serve application is told: the ``args`` of a config file, or the command's options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fastwan.errors import BadInput
from fastwan.serve.auth import read_tokens
from fastwan.serve.settings import LOCAL_HOSTS, Settings

_LATER_SECONDS = 10
"""Between the end of a drain and the moment when Ray kills what has not ended."""


class Limits(BaseModel):
    """Numbers of `Settings`; what is left out has its default there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue_size: int | None = None
    client_share: int | None = None
    keep_seconds: int | None = None
    keep_bytes: int | None = None
    keep_jobs: int | None = None
    longest_prompt: int | None = None
    longest_body: int | None = None
    drain_seconds: int | None = None
    attempts: int | None = None


class Options(BaseModel):
    """A server with its jobs on one node and a replica for each device of all nodes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bundle: Path
    """Folder of a bundle, the same on every node."""
    folder: Path
    """Holds jobs and videos, on the node of the ingress."""
    host: str = LOCAL_HOSTS[0]
    """That Ray's proxy listens on, as ``http_options`` say: to this machine alone it is reached
    under that machine's names alone."""
    device: Literal["cuda", "cpu", "emulated"] = "cuda"
    """As of ``generate``; a replica on cuda or emulated takes one GPU."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """That are always there."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """That there may be while videos wait; None for no more than `replicas`."""
    cpus: Annotated[float, Field(gt=0)] = 0.25
    """Share of a node's CPUs that a replica on cpu asks Ray for."""
    tokens: Path | None = None
    """File of bearer tokens, on the node of the ingress."""
    prompt_cache: Path | None = None
    """Folder that keeps prompt embeddings, on each node."""
    limits: Limits = Limits()
    """Of the server."""

    @property
    def most_replicas(self) -> int:
        """That there may be.

        Raises:
            BadInput: fewer than there always are.
        """
        most = self.replicas if self.max_replicas is None else self.max_replicas
        if most < self.replicas:
            raise BadInput(
                f"at most {most} replicas, and always {self.replicas}",
                where="max_replicas",
                fix="give as many, or more",
            )
        return most

    def settings(self) -> Settings:
        """Of the ingress, which makes as many videos at a time as there may be replicas.

        Raises:
            BadInput: a number out of range, or tokens that cannot be used.
        """
        tokens = read_tokens(self.tokens) if self.tokens is not None else ()
        limits: dict[str, Any] = self.limits.model_dump(exclude_none=True)
        return Settings(
            folder=self.folder, host=self.host, tokens=tokens, slots=self.most_replicas, **limits
        )

    def replica(self) -> dict[str, Any]:
        """Options of the deployment of replicas, as Ray Serve has them.

        Raises:
            BadInput: see `most_replicas`.
        """
        on_gpu = self.device != "cpu"
        return {
            # One video at a time; what is called beyond that waits for a replica, and counts.
            "max_ongoing_requests": 1,
            "autoscaling_config": {
                "min_replicas": self.replicas,
                "max_replicas": self.most_replicas,
                "target_ongoing_requests": 1,
            },
            "ray_actor_options": {
                "num_gpus": 1 if on_gpu else 0,
                "num_cpus": 0 if on_gpu else self.cpus,
            },
            **self._ends(),
        }

    def ingress(self) -> dict[str, Any]:
        """Options of the deployment of the ingress: one, since it holds the jobs."""
        return {
            "num_replicas": 1,
            "max_ongoing_requests": 1000,
            "ray_actor_options": {"num_cpus": 0},
            **self._ends(),
        }

    def _ends(self) -> dict[str, Any]:
        """How a deployment is watched and ended: a video that is being made is finished."""
        drain = self.settings().drain_seconds
        return {"health_check_period_s": 2, "graceful_shutdown_timeout_s": drain + _LATER_SECONDS}
