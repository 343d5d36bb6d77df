"""The plugin library's launches as the runtime calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fastwan.bundle import Bundle
from fastwan.errors import EnvironmentLacks
from fastwan.plugins.elementwise import cast_desc, combine_desc
from fastwan.plugins.loader import LIBRARY_NAME, PluginLibrary, find_library
from fastwan.plugins.normals import LibraryNormals, draws_normals
from fastwan.plugins.regions.base import RegionOp
from fastwan.runtime.model.noise import Normals
from fastwan.runtime.model.normal import NormalGenerator
from fastwan.runtime.recording.machine import DeviceError

BUNDLED = f"plugins/{LIBRARY_NAME}"


def library_path(bundle: Bundle) -> Path:
    """The bundle's own plugin library, hash-checked, or else the one of this machine.

    Raises:
        EnvironmentLacks: there is none.
        VerificationFailed: it differs from its hash.
    """
    return bundle.file(BUNDLED) if BUNDLED in bundle.manifest.files else find_library()


def normals_of(library: PluginLibrary) -> Callable[[int], Normals]:
    """What draws the noise of a seed: the library, or numpy where that is older than the function.

    The numbers are the same. For 832x480x81 numpy takes five to ten times as long, and a video
    waits for its noise: up to some hundredths of its time.
    """
    if draws_normals(library):
        return partial(LibraryNormals, library)
    return NormalGenerator


class PluginKernels:
    """`Kernels` of a loaded plugin library.

    Args:
        chosen: what to launch in place of a region, where another kernel of it is faster.
    """

    def __init__(
        self, library: PluginLibrary, chosen: Mapping[RegionOp, RegionOp] | None = None
    ) -> None:
        self._library = library
        self._chosen = chosen or {}

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        region = self._chosen.get(region, region)
        with _device_errors():
            self._library.enqueue(region, inputs, outputs, workspace, workspace_bytes, stream)

    def combine(
        self,
        terms: Sequence[tuple[int, str]],
        outputs: Sequence[int],
        sums: Sequence[Sequence[tuple[int, float]]],
        elements: int,
        stream: int,
    ) -> None:
        desc = combine_desc([dtype for _, dtype in terms], sums, elements)
        with _device_errors():
            self._library.enqueue_combine(desc, [at for at, _ in terms], outputs, stream)

    def cast(
        self,
        source: tuple[int, str],
        target: tuple[int, str],
        rows: tuple[int, int, int],
        stream: int,
    ) -> None:
        desc = cast_desc(source[1], target[1], rows)
        with _device_errors():
            self._library.enqueue_cast(desc, source[0], target[0], stream)


@contextmanager
def _device_errors() -> Iterator[None]:
    """A launch that fails is a device's error: during a capture the work can still run eagerly."""
    try:
        yield
    except EnvironmentLacks as error:
        raise DeviceError(error.what) from error
