"""Tensors on a device that has not been touched yet: a buffer's name, a place in it, no address.

A video is recorded over these, planned, and only then given memory; see docs/structure.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fastwan.dtypes import ITEM_BYTES, PAIRED
from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec

Space = Literal["device", "host"]


@dataclass(frozen=True, eq=False)
class Buffer:
    """A piece of memory, known by identity.

    Attributes:
        size: in bytes.
        space: ``host`` is pinned memory.
        fixed: keeps its place and content from one video to the next (constants, tables of a
            schedule, keys and values of a prompt); others may share memory with buffers that live
            at other times.
        content: what is written once, when the memory is allocated: bytes, or the name of an
            initializer of the transformer's ONNX file; None for nothing.
    """

    name: str
    size: int
    space: Space = "device"
    fixed: bool = False
    content: bytes | str | None = None


@dataclass(frozen=True)
class Tensor:
    """A view of a buffer.

    Attributes:
        dtype: numpy name, ``bfloat16`` included.
        strides: in elements.
        offset: of the first element, in bytes.
        packed: bytes of a tensor in an engine's own layout, whole and in its own buffer; None
            where shape and strides say where each element is.
    """

    buffer: Buffer
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    packed: int | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie without gaps in row-major order."""
        return self.packed is not None or all(
            size == 1 or stride == wanted
            for size, stride, wanted in zip(
                self.shape, self.strides, row_major(self.shape), strict=True
            )
        )

    @property
    def span(self) -> tuple[int, int]:
        """Bytes [begin, end) of the buffer that the view touches; gaps count."""
        if self.packed is not None:
            return self.offset, self.offset + self.packed
        last = sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        return self.offset, self.offset + (last + 1) * self.itemsize

    @property
    def size(self) -> int:
        """Length of `span`."""
        begin, end = self.span
        return end - begin

    def __getitem__(self, index: object) -> Tensor:
        """A view by integers and slices of step 1, one for each leading axis."""
        indices = index if isinstance(index, tuple) else (index,)
        if self.packed is not None or len(indices) > len(self.shape):
            raise IndexError(f"{self.buffer.name} cannot be indexed by {index!r}")
        shape: list[int] = []
        strides: list[int] = []
        begin = 0
        for axis, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            chosen = indices[axis] if axis < len(indices) else slice(None)
            if isinstance(chosen, int):
                if not -size <= chosen < size:
                    raise IndexError(f"{chosen} is out of range for an axis of {size}")
                begin += (chosen % size) * stride
            elif isinstance(chosen, slice) and chosen.step in (None, 1):
                start, stop, _ = chosen.indices(size)
                begin += start * stride
                shape.append(stop - start)
                strides.append(stride)
            else:
                raise IndexError(f"no view by {chosen!r}")
        return replace(
            self,
            shape=tuple(shape),
            strides=tuple(strides),
            offset=self.offset + begin * self.itemsize,
        )

    def rows(self) -> tuple[int, int, int]:
        """The view as (rows, columns, elements from row to row), columns without gaps.

        Raises:
            BadInput: it has more than one axis with gaps.
        """
        columns, axis = 1, len(self.shape)
        while axis and (self.shape[axis - 1] == 1 or self.strides[axis - 1] == columns):
            axis -= 1
            columns *= self.shape[axis]
        left = [
            (size, stride)
            for size, stride in zip(self.shape[:axis], self.strides[:axis], strict=True)
            if size > 1
        ]
        rows, pitch = left[-1] if left else (1, columns)
        for size, stride in reversed(left[:-1]):
            if stride != rows * pitch:
                raise BadInput(f"{self.buffer.name} has gaps in two axes", where="runtime")
            rows *= size
        return rows, columns, pitch


def packed_pairs(tensor: Tensor, dtype: str) -> Tensor | None:
    """Bytes as the 4-bit numbers that lie in them, two along the last axis; None if they are not.

    Args:
        dtype: of the numbers.
    """
    if dtype not in PAIRED or tensor.dtype != "uint8" or not tensor.shape or not tensor.contiguous:
        return None
    shape = (*tensor.shape[:-1], tensor.shape[-1] * 2)
    return replace(
        tensor, dtype=dtype, shape=shape, strides=row_major(shape), packed=tensor.elements
    )


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a tensor without gaps."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def resolved(spec: TensorSpec, dynamic: Mapping[str, int] | int = 1) -> tuple[int, ...]:
    """Shape of a tensor with its dynamic axes replaced, by name or all by one size."""
    return tuple(
        size if isinstance(size, int) else dynamic if isinstance(dynamic, int) else dynamic[size]
        for size in spec.shape
    )


def allocate(
    spec: TensorSpec,
    shape: tuple[int, ...] | None = None,
    *,
    name: str = "",
    space: Space = "device",
    fixed: bool = False,
    content: bytes | str | None = None,
) -> Tensor:
    """A tensor like `spec` in a buffer of its own.

    ``hwc8`` is channels last with the channels padded to 8: opaque here, only its size matters. So
    are 4-bit numbers, two a byte.

    Raises:
        BadInput: a dtype that the runtime does not know.
    """
    shape = resolved(spec) if shape is None else shape
    packed = None
    if spec.dtype in PAIRED and shape and shape[-1] % 2 == 0:
        packed = size = math.prod(shape) // 2
    elif spec.dtype in ITEM_BYTES:
        size = math.prod(shape) * ITEM_BYTES[spec.dtype]
    else:
        raise BadInput(f"{spec.name} has unknown dtype {spec.dtype}", where="bundle")
    if spec.format == "hwc8":
        packed = size = size // shape[1] * (-(-shape[1] // 8) * 8)
    buffer = Buffer(name or spec.name, size, space, fixed, content)
    return Tensor(buffer, spec.dtype, shape, row_major(shape), 0, packed)
