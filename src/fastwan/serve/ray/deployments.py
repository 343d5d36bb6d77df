"""The two deployments of the application, without Ray's decorators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastwan.errors import EnvironmentLacks
from fastwan.serve.app import create_app
from fastwan.serve.bundle_player import BundlePlayer
from fastwan.serve.player import Player
from fastwan.serve.ray.options import Options
from fastwan.serve.ray.remote_player import RemotePlayer
from fastwan.serve.ray.replica import Replica
from fastwan.serve.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI


class BundleReplica(Replica):
    """A replica that plays a bundle on the device that Ray gave it."""

    def __init__(self, options: Options) -> None:
        super().__init__(self.open(options))

    def open(self, options: Options) -> Player:
        """The player of this replica."""
        return BundlePlayer.open(options.bundle, options.device, prompt_cache=options.prompt_cache)

    def __del__(self) -> None:
        self.close()


class Ingress:
    """The server's application with jobs, queue and videos; its player is the replicas.

    Args:
        replicas: handle of their deployment.
    """

    async def __init__(self, options: Options, replicas: Any) -> None:  # type: ignore[misc]
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        self._player = RemotePlayer(
            replicas.options(method_name="play", stream=True).remote,
            await replicas.describe.remote(),
            gone=(RayError, RayServeException),
        )
        self._settings = options.settings()
        self._service: Service | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve after the constructor."""
        app = create_app(self._settings, self._player)
        self._service = app.state.service
        return app

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces an ingress whose workers failed."""
        if self._service is not None and self._service.worker.fault is not None:
            raise EnvironmentLacks(f"the server failed: {self._service.worker.fault}")
