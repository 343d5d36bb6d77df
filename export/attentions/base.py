"""What an attention is: how engines are divided for it, and what it computes.

In the exported graph self-attention is one node, ``fastwan::SageAttention3``, whatever the
attention: everything between the qkv GEMM and the output GEMM. An attention is one object that says
what becomes of that node. Nothing else asks for its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from fastwan.export.recipes import Kernel
from fastwan.plugins import reference

if TYPE_CHECKING:
    import onnx_ir as ir

    from fastwan.export.passes.cut_at_regions import Region


@dataclass(frozen=True)
class Form:
    """What the attention node computes, in torch.

    Attributes:
        name: in the names of the nodes that it is lowered to.
        compute: a function of the node's seven inputs, and of its attributes by keyword, to its
            output; see `fastwan.plugins.reference.attention_node`.
    """

    name: str
    compute: Callable[..., Tensor]


def _exact(
    qkv: Tensor,
    qkv_scale: Tensor,
    qkv_bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    *,
    num_heads: int,
    num_tokens: int,
    eps: float,
    softmax_scale: float,
    exact_max: bool = False,
) -> Tensor:
    return reference.attention_node_fp32(
        qkv.float(),
        qkv_scale,
        qkv_bias.float(),
        q_norm.float(),
        k_norm.float(),
        rope_cos,
        rope_sin,
        num_heads=num_heads,
        num_tokens=num_tokens,
        eps=eps,
        softmax_scale=softmax_scale,
    ).to(qkv.dtype)


EXACT = Form("exact", _exact)
"""Attention in fp32: what every attention stands for."""


@dataclass(frozen=True)
class Division:
    """The denoising step as the graphs of its engines, in the order in which they run.

    Attributes:
        regions: what the runtime launches between them.
    """

    models: tuple[ir.Model, ...]
    regions: tuple[Region, ...] = ()


class AttentionKernel(Kernel, Protocol):
    """What an attention asks of a layer record of an engine."""

    @property
    def nodes(self) -> Sequence[str]:
        """Names of the ONNX nodes behind it."""

    @property
    def precision(self) -> str:
        """dtype of what is multiplied."""


@dataclass(frozen=True)
class Attention(ABC):
    """How self-attention is computed.

    Attributes:
        name: in the tables, the manifests and on the command line.
        uses_library: whether its engines or its regions need the plugin library.
        takes_row_scales: whether a node that `divide` is given may have factors of the rows of qkv
            as its last input, and the attribute ``row_scaled``.
        wanted: what an engine has to compute it by, in words; empty where nothing is asked.
        reference: what a model that was made for it computes; the CPU reference and `verify`
            compute it too.
    """

    name: str
    uses_library: ClassVar[bool]
    takes_row_scales: ClassVar[bool] = False
    wanted: ClassVar[str] = ""
    reference: ClassVar[Form]

    @property
    def quantised(self) -> bool:
        """Whether it computes anything but exact attention."""
        return self.reference is not EXACT

    @abstractmethod
    def divide(self, dit: ir.Model, *, plugins: bool) -> Division:
        """Divide the graph of a denoising step for a backend.

        Args:
            dit: with the attention nodes; left unchanged.
            plugins: whether the backend holds nodes of the domain ``fastwan`` in an engine.
        """

    def faults(self, nodes: Iterable[str], kernels: Sequence[AttentionKernel]) -> list[str]:
        """What an engine does not compute as `wanted`, in words; with any it is refused.

        Args:
            nodes: names of the nodes of the graph that the engine was built from.
            kernels: of the engine.
        """
        return []
