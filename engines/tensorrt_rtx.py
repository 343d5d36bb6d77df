"""The ``tensorrt-rtx`` backend: engines for a GPU that is not here, built on a CPU.

TensorRT-RTX compiles its kernels on the GPU when an engine is loaded, so a build needs none. It
knows no plugins: graphs with nodes of the domain ``fastwan`` are cut or lowered first.
"""

from __future__ import annotations

from typing import Any

from fastwan.config import Target
from fastwan.engines.backend import BuildOptions, BuiltEngine, check_served
from fastwan.engines.isolated import WorkerPool, can_isolate
from fastwan.engines.network import build_network, import_builder
from fastwan.engines.source import EngineSource
from fastwan.errors import EnvironmentLacks
from fastwan.parallel import workers
from fastwan.progress import Progress


class TensorRTRTX:
    """Builder over the module ``tensorrt_rtx``."""

    name = "tensorrt-rtx"
    takes_plugins = False

    def __init__(self) -> None:
        self._pool = WorkerPool(self.name)

    def version(self) -> str:
        return str(self._module().__version__)

    def check(self, target: Target) -> None:
        check_served(self, target)
        self._capability(self._module(), target)

    def build(self, source: EngineSource, options: BuildOptions, progress: Progress) -> BuiltEngine:
        if not can_isolate():
            return self.build_here(source, options, progress)
        self._capability(self._module(), options.target)
        return self._pool.build(source, options, progress)

    def jobs(self) -> int:
        return workers() if can_isolate() else 1

    def close(self) -> None:
        self._pool.close()

    def build_here(
        self, source: EngineSource, options: BuildOptions, progress: Progress
    ) -> BuiltEngine:
        trt = self._module()
        capability = self._capability(trt, options.target)

        def configure(config: Any) -> None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(capability, 0)

        # Networks are strongly typed without a flag.
        return build_network(trt, source, progress, network_flags=0, configure=configure)

    def _module(self) -> Any:
        return import_builder("tensorrt_rtx", "tensorrt-rtx-cu13")

    def _capability(self, trt: Any, target: Target) -> Any:
        member = f"SM{target.compute_capability}"
        try:
            return trt.ComputeCapability.__members__[member]
        except KeyError:
            known = ", ".join(name for name in trt.ComputeCapability.__members__ if "SM" in name)
            raise EnvironmentLacks(
                f"TensorRT-RTX {trt.__version__} does not build for {member}",
                where=target.name,
                fix=f"it builds for {known}",
            ) from None
