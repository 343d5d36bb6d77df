"""What a kind of region has to say of itself, so that nothing else spells out its tensors."""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Self

from fastwan.errors import BadInput
from fastwan.manifest import RegionNode, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 2.0**-126
"""Of the normal numbers of fp32."""


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

    family: ClassVar[str] = "region"
    """Part of the C interface that describes, checks and enqueues it: ``fastwan_<family>_...``."""

    served: ClassVar[str] = "fastwan_device_supported"
    """Function of the C interface that says whether a GPU runs it."""

    limit: ClassVar[float] = 0.0
    """Largest relative L2 difference of a kernel that works from `reference`, of what its outputs
    stand for; 0: it writes the same bytes."""

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

    @property
    def true_rows(self) -> int | None:
        """Rows of the outputs behind which they are zero; None where there are no such rows."""
        return None

    @abstractmethod
    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs in torch, the definition of the kernels.

        Args:
            inputs: in the order of `inputs`, all on one device.
        """

    @property
    def alternatives(self) -> Mapping[str, RegionOp]:
        """This region by each kernel that computes it, by the kernel's name; empty with one."""
        return {}

    def on(self, processors: int) -> Self:
        """This node as a GPU of so many multiprocessors runs it; 0: whichever GPU runs it.

        Only a kind whose schedule, and so the order of its sums, depends on them differs.
        """
        return self

    @abstractmethod
    def desc(self) -> ctypes.Structure:
        """The structure of the C interface that describes the node."""

    @abstractmethod
    def __str__(self) -> str:
        """What a person calls it in a list of launches."""


def dims(spec: TensorSpec) -> tuple[int, ...]:
    """Shape of a tensor whose axes are all fixed, as those of every region are."""
    return tuple(int(size) for size in spec.shape)


@lru_cache(maxsize=4096)
def tensor(name: str, dtype: str, *shape: int) -> TensorSpec:
    """Name, dtype and shape of a tensor."""
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def aligned(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return math.ceil(size / alignment) * alignment


def whole(node: RegionNode, name: str, default: int | None, least: int, most: int) -> int:
    """A whole number of a node; without a default it has to be there.

    Raises:
        BadInput: it is missing or out of range.
    """
    value = node.attributes.get(name, default)
    if type(value) is not int or not least <= value <= most:
        shown = "missing" if value is None else ascii(value)
        raise BadInput(
            f"{node.op} has {name} {shown}, not a whole number within {least} .. {most}",
            where="manifest.json",
            fix="build the bundle again",
        )
    return value


def real(node: RegionNode, name: str, default: float | None) -> float:
    """A positive number of a node that fp32 holds, at most 1; without a default it has to be there.

    Raises:
        BadInput: it is missing or out of range.
    """
    value = node.attributes.get(name, default)
    number = float(value) if isinstance(value, (int, float)) else 0.0
    if type(value) is bool or not SMALLEST <= number <= 1:
        shown = "missing" if value is None else ascii(value)
        raise BadInput(
            f"{node.op} has {name} {shown}, not a number within {SMALLEST:.3g} .. 1",
            where="manifest.json",
            fix="build the bundle again",
        )
    return number


def refuse_unknown(node: RegionNode, names: Set[str]) -> None:
    """Refuse attributes that a kind of region does not have.

    Raises:
        BadInput: there is one.
    """
    if unknown := node.attributes.keys() - names:
        raise BadInput(f"{node.op} has no attribute {min(unknown)!r}", where="manifest.json")
