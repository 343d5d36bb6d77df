"""The tables of faults, one file a place where the fault lies."""

from __future__ import annotations

from testkit.fault_tables import (
    bundles,
    caches,
    checkpoints,
    environment,
    manifests,
    options,
    outputs,
)
from testkit.faults import Fault

FAULTS: tuple[Fault, ...] = (
    *bundles.FAULTS,
    *manifests.FAULTS,
    *checkpoints.FAULTS,
    *caches.FAULTS,
    *outputs.FAULTS,
    *options.FAULTS,
    *environment.FAULTS,
)
