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
    return build_over(BundleReplica, args)


def build_over(kind: type[BundleReplica], options: Options) -> Application:
    """The same with replicas of another class."""
    from ray import serve

    replica = serve.deployment(name="Replica", **options.replica())(kind)
    ingress = serve.deployment(name="Ingress", **options.ingress())(serve.ingress()(Ingress))
    return ingress.bind(options, replica.bind(options))
