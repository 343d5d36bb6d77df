"""One protocol over the two builders, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from fastwan.config import BACKENDS, Target
from fastwan.engines.layers import LayerRecord
from fastwan.engines.source import EngineSource
from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec
from fastwan.progress import Progress
from fastwan.tables import implementation


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for.

    Attributes:
        target: the GPU.
        plugin_library: ``libfastwan_plugins.so``, for a backend that takes plugins.
        scratch: folder for files that a build needs while it runs; the system's own where None.
    """

    target: Target
    plugin_library: Path | None = None
    scratch: Path | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine and what its build said about it.

    Attributes:
        plan: the engine; a view of the builder's memory, not a copy.
        layers: one record a kernel, in the order of execution.
        scratch_bytes: device memory that an execution context needs while it runs.
        inputs: in the order of the graph; dtypes are numpy names, ``bfloat16`` included.
        outputs: likewise.
    """

    plan: memoryview
    layers: tuple[LayerRecord, ...]
    scratch_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Backend(Protocol):
    """A builder of engines."""

    @property
    def name(self) -> str:
        """Name in the manifest and on the command line."""

    @property
    def takes_plugins(self) -> bool:
        """Whether its engines depend on the plugin library."""

    def version(self) -> str:
        """Version of the library; part of the cache key.

        Raises:
            EnvironmentLacks: the package is not installed.
        """

    def check(self, target: Target) -> None:
        """Check that this machine can build for `target`.

        Raises:
            BadInput: the backend does not serve that target.
            EnvironmentLacks: package, GPU or driver is missing or of a wrong kind.
        """

    def build(self, source: EngineSource, options: BuildOptions, progress: Progress) -> BuiltEngine:
        """Build one engine.

        Raises:
            BadInput: the parser or the builder refuses the graph; names the node.
            EnvironmentLacks: see `check`.
            KeyboardInterrupt: the user pressed Ctrl-C; the build was cancelled cleanly.
        """

    def build_here(
        self, source: EngineSource, options: BuildOptions, progress: Progress
    ) -> BuiltEngine:
        """`build` in this process, where a build that ran before may change the order of lists.

        Raises:
            BadInput, EnvironmentLacks, KeyboardInterrupt: see `build`.
        """

    def jobs(self) -> int:
        """Calls of `build` that may run at once, on threads of their own."""

    def close(self) -> None:
        """End the builds that run and give back what they needed; a later one takes it again."""


_BACKENDS: dict[str, str] = {
    "tensorrt-rtx": "fastwan.engines.tensorrt_rtx:TensorRTRTX",
    "tensorrt": "fastwan.engines.tensorrt:TensorRT",
}


def load_backend(name: str) -> Backend:
    """The backend of that name; its library is imported when it is first needed.

    Raises:
        BadInput: there is none; the message lists those there are.
    """
    module, _, attribute = implementation(BACKENDS, _BACKENDS, name, "backend").partition(":")
    factory: Callable[[], Backend] = getattr(import_module(module), attribute)
    return factory()


def check_served(backend: Backend, target: Target) -> None:
    """Check that the table of targets lists the backend for `target`.

    Raises:
        BadInput: it does not.
    """
    if backend.name not in target.backends:
        raise BadInput(
            f"{backend.name} does not build for {target.name}",
            where="--backend",
            fix="one of " + ", ".join(target.backends),
        )
