"""What a kind of region has to say of itself, so that nothing else spells out its tensors."""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from fastwan.manifest import RegionNode, TensorSpec


@dataclass(frozen=True)
class Launch:
    """One kernel of a region, counted from shapes.

    Attributes:
        bytes_moved: read and written in device memory; what fits the L2 cache counts once.
        operations: multiplications and additions of matrix arithmetic; 0 for a kernel that only
            moves memory.
        rate: the measured rate of the GPU table that the arithmetic runs at.
    """

    name: str
    bytes_moved: int
    operations: int = 0
    rate: str = ""


class RegionOp(ABC):
    """One node of the domain ``fastwan`` as the plugin library launches it.

    A subclass is a frozen dataclass of shapes and attributes, one file beside this one, and a row
    of `fastwan.plugins.regions.REGIONS`.
    """

    op: ClassVar[str]
    """Type of the node."""

    @classmethod
    @abstractmethod
    def from_node(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> Self:
        """Read a node of a manifest.

        Args:
            specs: by name, everything that the node reads and writes.

        Raises:
            BadInput: attributes or shapes that the kernel does not take.
        """

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the kernels read, in the order of the node's inputs."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What they write, in the order of the node's outputs."""

    @property
    @abstractmethod
    def launches(self) -> tuple[Launch, ...]:
        """The kernels, in the order in which they are enqueued."""

    @property
    @abstractmethod
    def workspace_bytes(self) -> int:
        """Device memory that the kernels need while they run, aligned to 256 bytes."""

    @abstractmethod
    def desc(self) -> ctypes.Structure:
        """The structure of csrc/fastwan_plugins.h that describes the node."""

    @abstractmethod
    def __str__(self) -> str:
        """What a person calls it in a list of launches."""


def dims(spec: TensorSpec) -> tuple[int, ...]:
    """Shape of a tensor whose axes are all fixed, as those of every region are."""
    return tuple(int(size) for size in spec.shape)


def tensor(name: str, dtype: str, *shape: int) -> TensorSpec:
    """Name, dtype and shape of a tensor."""
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def aligned(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return math.ceil(size / alignment) * alignment
