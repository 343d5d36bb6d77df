"""Figures for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from fastwan.serve.player import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STEP = re.compile(r"step_\d+")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The figures of one server.

    Args:
        waiting: number of videos in the queue, asked when the figures are.
        state: of the player, likewise.
    """

    def __init__(self, waiting: Callable[[], int], state: Callable[[], State]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "fastwan_requests", "Requests that were answered.", ["method", "route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._videos = Counter(
            "fastwan_videos", "Videos that ended.", ["status"], registry=self.registry
        )
        self._stages = Histogram(
            "fastwan_stage_seconds", "Time of a stage of a completed video.", ["stage"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        Gauge("fastwan_queue_depth", "Videos that wait.", registry=self.registry).set_function(
            waiting
        )
        Gauge(
            "fastwan_device_bytes", "Device memory of a video by plan.", registry=self.registry
        ).set_function(lambda: state().device_bytes)
        self._launch = Gauge(
            "fastwan_launch", "How the device is driven: 1 of graph, eager and none.", ["mode"],
            registry=self.registry,
        )  # fmt: skip
        for mode in ("graph", "eager", "none"):
            self._launch.labels(mode).set_function(
                lambda mode=mode: float(state().launch == mode)  # type: ignore[misc]
            )

    def count_request(self, method: str, route: str, status: int) -> None:
        """Count a request.

        Args:
            route: its template, so that ids make no series.
        """
        self._requests.labels(method, route, str(status)).inc()

    def count_video(self, status: str, timings: Mapping[str, float]) -> None:
        """Count a video that ended, and observe its stages; all steps are one stage."""
        self._videos.labels(status).inc()
        for stage, seconds in timings.items():
            name = "step" if _STEP.fullmatch(stage) else stage
            self._stages.labels(name).observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
