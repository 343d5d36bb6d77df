"""The application that Ray Serve runs: ``import_path: fastwan.serve.ray.application:build``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastwan.serve.ray.deployments import BundleReplica, Ingress
from fastwan.serve.ray.options import Options

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: Options) -> Application:
    """One ingress over as many replicas as the options say.

    Raises:
        BadInput: options that contradict each other.
    """
    from ray import serve

    replica = serve.deployment(name="Replica", **args.replica())(BundleReplica)
    ingress = serve.deployment(name="Ingress", **args.ingress())(serve.ingress()(Ingress))
    return ingress.bind(args, replica.bind(args))
