"""Register the plugins of ``libfastwan_plugins.so`` with a TensorRT module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastwan.errors import EnvironmentLacks
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions import REGIONS

CREATORS = tuple((op, "1", "fastwan") for op in REGIONS)
"""Name, version and namespace of the TensorRT plugins' creators, one a kind of region."""


def load_into_registry(trt: Any, path: Path | None = None) -> None:
    """Register the plugins with a TensorRT module, so that parsers and runtimes know the nodes.

    Do not call it with ``tensorrt_rtx`` in a process that parses ONNX there: its parser aborts on
    a node whose creator is registered, because its networks take no plugins.

    Args:
        trt: the module ``tensorrt``, ``tensorrt_lean`` or ``tensorrt_rtx``.
        path: the library; by default `find_library`.

    Raises:
        EnvironmentLacks: no library, or one that was built without TensorRT's headers.
        BadInput: not a plugin library of this interface.
    """
    registry = trt.get_plugin_registry()
    if _complete(registry):
        return
    library = PluginLibrary(path)
    if library.build_info.get("tensorrt", "none") == "none":
        raise EnvironmentLacks(
            "the plugin library was built without TensorRT headers",
            where=str(library.path),
            fix="set TENSORRT_ROOT to a folder that has include/NvInferRuntime.h and build again",
        )
    if not registry.load_library(str(library.path.absolute())) or not _complete(registry):
        raise EnvironmentLacks(
            f"{trt.__name__} {trt.__version__} did not take the plugin library",
            where=str(library.path),
            fix="build it against the headers of that TensorRT",
        )


def _complete(registry: Any) -> bool:
    return all(registry.get_creator(*creator) is not None for creator in CREATORS)
