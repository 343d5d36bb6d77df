"""The ``tensorrt`` backend: TensorRT 11 with the attention plugin, on the GPU it builds for."""

from __future__ import annotations

from typing import Any

from fastwan.config import Target
from fastwan.cuda_driver import compute_capability
from fastwan.engines.backend import BuildOptions, BuiltEngine, check_served
from fastwan.engines.network import build_network, import_builder
from fastwan.engines.source import EngineSource
from fastwan.errors import EnvironmentLacks
from fastwan.install import how_to_install
from fastwan.progress import Progress

MAJOR = 11
PLUGIN_DOMAINS = frozenset({"fastwan"})


class TensorRT:
    """Builder over the module ``tensorrt``."""

    name = "tensorrt"
    takes_plugins = True

    def version(self) -> str:
        return str(self._module().__version__)

    def check(self, target: Target) -> None:
        check_served(self, target)
        self._module()
        capability = compute_capability()
        if capability is None:
            raise EnvironmentLacks(
                "TensorRT builds only on the GPU that will run the engine, and none is visible",
                where="--backend tensorrt",
                fix="use --backend tensorrt-rtx here, or build on the GPU machine",
            )
        if capability != target.compute_capability:
            raise EnvironmentLacks(
                f"the GPU here is SM{capability}, {target.name} is SM{target.compute_capability}",
                where="--backend tensorrt",
                fix=f"build on a {target.gpu}, or use --backend tensorrt-rtx",
            )

    def build(self, source: EngineSource, options: BuildOptions, progress: Progress) -> BuiltEngine:
        self.check(options.target)
        return self.build_here(source, options, progress)

    def build_here(
        self, source: EngineSource, options: BuildOptions, progress: Progress
    ) -> BuiltEngine:
        trt = self._module()
        domains: frozenset[str] = frozenset()
        if options.plugin_library is not None:
            from fastwan.plugins.registry import load_into_registry

            load_into_registry(trt, options.plugin_library)
            domains = PLUGIN_DOMAINS
        flags = trt.NetworkDefinitionCreationFlag.__members__
        strong = flags.get("STRONGLY_TYPED")  # the only typing there is where the flag is gone
        return build_network(
            trt,
            source,
            progress,
            network_flags=0 if strong is None else 1 << int(strong),
            configure=lambda config: None,
            plugin_domains=domains,
        )

    def jobs(self) -> int:
        return 1  # it times kernels on the GPU, which builds may not share

    def close(self) -> None:
        pass

    def _module(self) -> Any:
        trt = import_builder("tensorrt", "tensorrt-cu13")
        version = str(getattr(trt, "__version__", "0"))
        if version.split(".")[0] != str(MAJOR):
            raise EnvironmentLacks(
                f"TensorRT {version} is installed, this tool needs {MAJOR}",
                where="tensorrt",
                fix=how_to_install("tensorrt"),
            )
        return trt
