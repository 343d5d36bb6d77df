"""Find, check and call ``libfastwan_plugins.so``.

Nothing here needs a GPU until a region is enqueued. The interface is csrc/fastwan_plugins.h and
csrc/glue.h.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastwan.cache_folder import cache_dir
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.plugins.elementwise import CastDesc, CombineDesc
from fastwan.plugins.library_file import (
    HOW_TO_BUILD,
    HOW_TO_BUILD_EMULATED,
    SOURCE,
    built_from,
    check_elf,
    sources_digest,
)
from fastwan.plugins.regions.attention import A, AttentionRegion, L
from fastwan.plugins.regions.base import RegionOp

_WINDOWS = sys.platform == "win32"
LIBRARY_NAME = "fastwan_plugins.dll" if _WINDOWS else "libfastwan_plugins.so"
LIBRARY_VARIABLE = "FASTWAN_PLUGIN_LIBRARY"
EMULATED_LIBRARY_NAME = (
    "fastwan_plugins_emulated.dll" if _WINDOWS else "libfastwan_plugins_emulated.so"
)
"""The same kernels with the FP4 MMA emulated, for compute capability 9.0 (docs/emulation.md)."""
EMULATED_LIBRARY_VARIABLE = "FASTWAN_EMULATED_PLUGIN_LIBRARY"
HEADER_VARIABLES = (
    "FASTWAN_KERNEL_INCLUDE",
    "FASTWAN_FLASHINFER_INCLUDE",
    "FASTWAN_CUTLASS_INCLUDE",
)
"""Environment variables that name folders of headers for the build."""
INTERFACE_VERSION = 2
LIBRARY_VERSION = "0.1.0"
"""Version of CMakeLists.txt; it changes with anything that changes a result."""

_OK, _INVALID_ARGUMENT, _UNSUPPORTED_DEVICE, _CUDA_ERROR, _WORKSPACE_TOO_SMALL = range(5)


def checkout_root() -> Path | None:
    """Root of the source tree that this package runs from; None when it is installed."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def build_folder(*, emulated: bool = False) -> Path:
    """Where the library is built by default: ``build/plugins``, or ``plugins`` in the cache.

    Args:
        emulated: the folder of the emulated library, ``emulated`` below that.

    Raises:
        EnvironmentLacks: there is no place for a cache.
    """
    root = checkout_root()
    folder = cache_dir("plugins") if root is None else root / "build" / "plugins"
    return folder / "emulated" if emulated else folder


def packaged_library() -> Path | None:
    """The library that came with the wheel; None where this copy has none."""
    path = SOURCE / LIBRARY_NAME
    return path if path.is_file() else None


def find_library(*, emulated: bool = False) -> Path:
    """Path of the library: ``$FASTWAN_PLUGIN_LIBRARY``, else the built one, else the wheel's.

    Beside a library of the wheel one that was built counts only if it is of this copy's sources:
    the folder may be another version's.

    Args:
        emulated: find the emulated library, ``$FASTWAN_EMULATED_PLUGIN_LIBRARY``.

    Raises:
        EnvironmentLacks: there is none, or the variable names a file that does not exist.
    """
    variable = EMULATED_LIBRARY_VARIABLE if emulated else LIBRARY_VARIABLE
    named = os.environ.get(variable)
    name = EMULATED_LIBRARY_NAME if emulated else LIBRARY_NAME
    packaged = None if emulated or named else packaged_library()
    if packaged is not None:
        built = _built_of_these_sources()
        return packaged if built is None else built
    path = Path(named) if named else build_folder(emulated=emulated) / name
    if path.is_file():
        return path
    where = f"{variable}={path}" if named else str(path)
    what = f"the {'emulated ' if emulated else ''}plugin library is missing"
    fix = HOW_TO_BUILD_EMULATED if emulated else HOW_TO_BUILD
    raise EnvironmentLacks(what, where=where, fix=fix)


def origin(path: Path) -> str:
    """Where a library that was found comes from, in words."""
    if path == packaged_library():
        return "from the wheel"
    named = (os.environ.get(name) for name in (LIBRARY_VARIABLE, EMULATED_LIBRARY_VARIABLE))
    place = "named in the environment" if str(path) in named else "built here"
    current = built_from(path) == sources_digest()
    return place if current else f"{place}, of other sources than this copy's"


def _built_of_these_sources() -> Path | None:
    try:
        path = build_folder() / LIBRARY_NAME
    except EnvironmentLacks:  # no place for a cache: nothing was built there
        return None
    return path if path.is_file() and built_from(path) == sources_digest() else None


_POINTERS = ctypes.POINTER(ctypes.c_void_p)
_COMBINE = (ctypes.POINTER(CombineDesc), _POINTERS, _POINTERS, ctypes.c_void_p)
_WORKSPACE = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))
_ENQUEUE = (
    ctypes.c_void_p,
    _POINTERS,
    _POINTERS,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
)
_CAST = (ctypes.POINTER(CastDesc), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class PluginLibrary:
    """The loaded library. Calls are thread-safe; messages are per thread.

    Args:
        path: the library; by default `find_library`.
        emulated: whether it must emulate the FP4 MMA; None takes a library of either kind.

    Raises:
        EnvironmentLacks: no library, or it needs something this machine lacks.
        BadInput: not a plugin library, truncated, of another interface or version, or of the
            other kind.
    """

    def __init__(self, path: Path | None = None, *, emulated: bool | None = False) -> None:
        self.path = find_library(emulated=bool(emulated)) if path is None else path
        if not self.path.is_file():
            raise EnvironmentLacks(
                "the plugin library is missing", where=str(self.path), fix=HOW_TO_BUILD
            )
        if not _WINDOWS:  # whose own loader says what it refuses
            check_elf(self.path)
        try:
            self._library = ctypes.CDLL(str(self.path.absolute()), mode=ctypes.RTLD_LOCAL)
        except OSError as error:
            raise EnvironmentLacks(
                f"the plugin library does not load: {error}", where=str(self.path), fix=HOW_TO_BUILD
            ) from None
        version = self._function("fastwan_interface_version", ctypes.c_int)()
        if version != INTERFACE_VERSION:
            raise BadInput(
                f"plugin library has interface {version}, this package needs {INTERFACE_VERSION}",
                where=str(self.path),
                fix=HOW_TO_BUILD,
            )
        self._last_error = self._function("fastwan_last_error", ctypes.c_char_p)
        self._build_info = self._function("fastwan_build_info", ctypes.c_char_p)
        found = self.build_info.get("version", "unknown")
        if found != LIBRARY_VERSION:
            raise BadInput(
                f"plugin library is version {found}, this package needs {LIBRARY_VERSION}",
                where=str(self.path),
                fix=HOW_TO_BUILD,
            )
        if emulated is not None and emulated != self.emulated:
            kinds = ("runs FP4 on the GPU", "emulates FP4")
            raise BadInput(
                f"plugin library {kinds[self.emulated]}; asked for is one that {kinds[emulated]}",
                where=str(self.path),
                fix=HOW_TO_BUILD_EMULATED if emulated else HOW_TO_BUILD,
            )

    def has(self, name: str) -> bool:
        """Whether the library has a function."""
        return hasattr(self._library, name)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise BadInput(
                f"not a fastwan plugin library: it has no {name}",
                where=str(self.path),
                fix=HOW_TO_BUILD,
            ) from None
        function.restype = result
        function.argtypes = list(arguments)
        return function

    def _check(self, status: int) -> None:
        if status == _OK:
            return
        message = self._last_error().decode(errors="replace")
        if status in (_UNSUPPORTED_DEVICE, _CUDA_ERROR):
            raise EnvironmentLacks(message, where="plugin library")
        raise BadInput(message, where="plugin library")

    @property
    def build_info(self) -> dict[str, str]:
        """What the library was built from: version, cuda, kernel, flashinfer, attention, prologue,
        tensorrt.

        `attention` and `prologue` list compute architectures; `tensorrt` is the version of the
        headers, or ``none`` when the library has no TensorRT plugin; `emulated` is ``yes`` when
        the FP4 MMA is emulated.
        """
        words = self._build_info().decode().split()
        return dict(word.split("=", 1) for word in words)

    @property
    def emulated(self) -> bool:
        """Whether the FP4 MMA is emulated: the same numbers, on compute capability 9.0."""
        return self.build_info.get("emulated") == "yes"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """Of the GPUs that run whole regions, as ``12.0``."""
        listed = self.build_info.get("attention", "").split(",")
        numbers = [int(name.rstrip("af")) for name in listed if name]
        return tuple(f"{number // 10}.{number % 10}" for number in numbers)

    def check_device(self, device: int = 0, kinds: Iterable[type[RegionOp]] = ()) -> None:
        """Raise unless CUDA device `device` can run whole regions.

        Args:
            kinds: of the regions; by default those of FP4.

        Raises:
            EnvironmentLacks: no such device, no driver, or another compute capability.
        """
        for name in sorted({kind.served for kind in kinds} or {RegionOp.served}):
            self.call(name, ctypes.c_int(device))

    def workspace_bytes(self, region: RegionOp) -> int:
        """Bytes of device memory that `enqueue` needs; nothing in it outlives the call.

        Raises:
            BadInput: the region's numbers do not fit.
        """
        size = ctypes.c_size_t()
        function = self._function(
            f"fastwan_{region.family}_workspace_bytes", ctypes.c_int, *_WORKSPACE
        )
        self._check(function(ctypes.byref(region.desc()), ctypes.byref(size)))
        return size.value

    def layout(self, region: AttentionRegion[A, L]) -> L:
        """Where the operands of the attention lie in the workspace."""
        layout = region.new_layout()
        name = f"fastwan_{region.halves}_layout_of"
        self.call(name, ctypes.byref(region.desc()), ctypes.byref(layout))
        return layout

    def enqueue(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Put the region on a CUDA stream. Allocates nothing, waits for nothing, capturable.

        Args:
            inputs: device addresses in the order of the region's inputs.
            outputs: device addresses of its outputs.
            workspace: device address, aligned to 256 bytes; its content does not matter.
            workspace_bytes: at least `workspace_bytes(region)`.
            stream: ``cudaStream_t`` as an integer; 0 is the legacy default stream.

        Raises:
            BadInput: wrong numbers or addresses.
            EnvironmentLacks: a device that cannot run it, or a CUDA error.
        """
        function = self._function(f"fastwan_{region.family}_enqueue", ctypes.c_int, *_ENQUEUE)
        self._launch(function, region, inputs, outputs, workspace, workspace_bytes, stream)

    def enqueue_prologue(
        self,
        region: AttentionRegion[A, L],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Only the launches of `enqueue` that write the operands.

        That of FP4 runs from compute capability 8.0 on; that of an emulated library on 9.0.
        """
        name = f"fastwan_{region.halves}_prologue_enqueue"
        function = self._function(name, ctypes.c_int, *_ENQUEUE)
        self._launch(function, region, inputs, outputs, workspace, workspace_bytes, stream)

    def enqueue_attention(
        self,
        region: AttentionRegion[A, L],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Only the attention of `enqueue`, on operands that are in the workspace."""
        name = f"fastwan_{region.halves}_attention_enqueue"
        function = self._function(name, ctypes.c_int, *_ENQUEUE[:1], *_ENQUEUE[2:])
        self._check(
            function(
                ctypes.byref(region.desc()), _addresses(outputs), workspace, workspace_bytes, stream
            )
        )

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the interface that answers a status.

        Args:
            arguments: each as the C type that the function has there, addresses as ``c_void_p``.

        Raises:
            BadInput: the library has no such function, or it refuses what is given.
            EnvironmentLacks: a device that cannot run it, or a CUDA error.
        """
        self._check(self._function(name, ctypes.c_int)(*arguments))

    def enqueue_combine(
        self, desc: CombineDesc, terms: Sequence[int], outputs: Sequence[int], stream: int
    ) -> None:
        """Put weighted sums on a CUDA stream; runs from compute capability 8.0 on.

        Args:
            terms: device addresses.
            outputs: device addresses, fp32; one may be that of a term.

        Raises:
            BadInput: wrong numbers or addresses.
            EnvironmentLacks: a CUDA error.
        """
        function = self._function("fastwan_combine_enqueue", ctypes.c_int, *_COMBINE)
        self._check(function(ctypes.byref(desc), _addresses(terms), _addresses(outputs), stream))

    def enqueue_cast(self, desc: CastDesc, source: int, target: int, stream: int) -> None:
        """Put a cast on a CUDA stream; runs from compute capability 8.0 on.

        Raises:
            BadInput: wrong numbers or addresses.
            EnvironmentLacks: a CUDA error.
        """
        function = self._function("fastwan_cast_enqueue", ctypes.c_int, *_CAST)
        self._check(function(ctypes.byref(desc), source, target, stream))

    def _launch(
        self,
        function: Any,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        status = function(
            ctypes.byref(region.desc()),
            _addresses(inputs),
            _addresses(outputs),
            workspace,
            workspace_bytes,
            stream,
        )
        self._check(status)


def _addresses(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(addresses))(*addresses)
