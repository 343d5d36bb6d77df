"""What the kinds of glue share: nodes between two GEMMs whose operands are FP4, a kernel each.

They write FP4 operands as csrc/glue.h has them. What they compute stands in
`fastwan.plugins.glue_reference`, what they move in docs/glue.md.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import ml_dtypes  # noqa: F401  registers bfloat16 and float8_e4m3fn with numpy
import numpy as np

from fastwan.errors import BadInput
from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.base import Launch, RegionOp, dims, tensor, whole

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 16
"""Neighbours that share a scale."""
SCALE = 4
"""Flag of ``csrc/glue.h``."""
_SCALED = "scaled"


class Quantized(NamedTuple):
    """Outputs of every kind, an FP4 operand of a GEMM.

    Attributes:
        codes: [1, L, C/2] uint8, two e2m1 codes a byte, the even element in the low nibble.
        scales: [1, L, C/16] float8_e4m3fn, row-major; the global scale is 1.
    """

    codes: TensorSpec
    scales: TensorSpec


class GlueDesc(ctypes.Structure):
    """``fastwan_glue_desc``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("keys", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("softmax_scale", ctypes.c_float),
        ("flags", ctypes.c_uint32),
    )


class GlueOp(RegionOp):
    """One node of the glue; subclasses are frozen dataclasses.

    Attributes:
        rows: L.
        columns: F or C, a multiple of 16.
    """

    family: ClassVar[str] = "glue"
    kind: ClassVar[int]
    """``fastwan_glue_kind``."""
    title: ClassVar[str]
    """What a person calls the kernel."""

    rows: int
    columns: int

    @property
    def quantized(self) -> Quantized:
        """The FP4 operand that it writes."""
        rows, columns = self.rows, self.columns
        return Quantized(
            tensor("codes", "uint8", 1, rows, columns // 2),
            tensor("scales", "float8_e4m3fn", 1, rows, columns // GROUP),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.quantized

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes that the kernel moves, by tensor."""
        read = {f"read {spec.name}": _bytes(spec) for spec in self.inputs}
        return read | {f"write {spec.name}": _bytes(spec) for spec in self.outputs}

    @property
    def launches(self) -> tuple[Launch, ...]:
        return (Launch(self.title, sum(self.traffic.values())),)

    @property
    def workspace_bytes(self) -> int:
        return 0

    def desc(self) -> GlueDesc:
        return GlueDesc(ctypes.sizeof(GlueDesc), self.kind, self.rows, self.columns)

    def __str__(self) -> str:
        return f"{self.title} of {self.rows} x {self.columns}"


class ScalableOp(GlueOp):
    """A node whose first input is the raw product of a GEMM, which it can multiply by a factor.

    Where a weight is given to its GEMM, so that one engine serves all blocks, the weight's global
    scale is applied here: ``y = bf16(y * y_scale)`` before anything else, as the attention does
    with q, k and v. A node with the attribute ``scaled`` has ``y_scale``, [] fp32, as its last
    input.

    Attributes:
        scaled: there is such a factor.
    """

    scaled: bool

    @classmethod
    def from_node(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> Self:
        scaled = bool(whole(node, _SCALED, 0, 0, 1))
        if scaled:
            attributes = {k: v for k, v in node.attributes.items() if k != _SCALED}
            node = node.model_copy(update={"inputs": node.inputs[:-1], "attributes": attributes})
        made = cls.unscaled(node, specs)
        return dataclasses.replace(made, scaled=scaled)  # type: ignore[type-var]

    @classmethod
    @abstractmethod
    def unscaled(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> Self:
        """`from_node` of a node without a factor."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[TensorSpec | None, ...]:
        """Inputs by name, without the factor; None for one that the node does not have."""

    @abstractmethod
    def compute(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`reference` of a node without a factor."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        factor = (tensor("y_scale", "float32"),) if self.scaled else ()
        return (*(spec for spec in self.tensors if spec is not None), *factor)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self.scaled:
            return self.compute(*inputs)
        y, *others, factor = inputs
        return self.compute((y.float() * factor).to(y.dtype), *others)

    def desc(self) -> GlueDesc:
        desc = super().desc()
        desc.flags = SCALE * self.scaled
        return desc


def shape_of(node: RegionNode, specs: Mapping[str, TensorSpec], multiple: int) -> tuple[int, int]:
    """Rows and columns of a node's first input, [1, L, C].

    Raises:
        BadInput: it has another form, or C is no multiple of `multiple`.
    """
    shape = dims(specs[node.inputs[0]]) if node.inputs else ()
    if len(shape) != 3 or shape[0] != 1 or min(shape) < 1 or shape[2] % multiple:
        raise BadInput(
            f"{node.op} has an input of shape {list(shape)}, not [1, L, C] with C a multiple of "
            f"{multiple}",
            where=node.inputs[0] if node.inputs else "manifest.json",
            fix="build the bundle again",
        )
    return shape[1], shape[2]


def _bytes(spec: TensorSpec) -> int:
    return math.prod(dims(spec)) * np.dtype(spec.dtype).itemsize
