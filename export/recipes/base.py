"""What a recipe is: the number format of linears, with everything that follows from it.

A recipe is one object: what is stored of a weight, how the torch module multiplies by it, which
nodes the builder gets, how ONNX Runtime computes them, and the gate that holds a graph and an
engine to it. Nothing else asks for its name. Imports of torch and onnx-ir stand inside the verbs,
because reading the layer records of an engine needs neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fastwan.errors import BadInput, VerificationFailed

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor

    from fastwan.export.passes.bare_gemm import BareGemm
    from fastwan.export.recipes.graph_index import GraphIndex

WEIGHT = "weight"


@dataclass(frozen=True)
class Recipe(ABC):
    """Number format of the targeted linears.

    What is stored of a weight is a dict by the last part of an initializer's name: ``weight``, and
    whatever else there is of it, e.g. ``weight_scale``. The module's buffers have the same names.

    Attributes:
        name: in the tables, the manifests and on the command line.
        operator: type of the node that stands for a linear in a traced graph.
        global_scales: buffers that hold an fp32 factor of the whole weight; `verify` moves them by
            one unit in the last place.
        gives_weights: whether an engine can be given the weights of its linears, see `bare_gemm`.
    """

    name: str
    operator: ClassVar[str] = "MatMul"
    gives_weights: ClassVar[bool] = False
    global_scales: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def gate(self) -> Gate | None:
        """What holds graphs and engines to the recipe; None where weights are stored as they are.

        `stored` refuses a recipe without a gate that changes a weight.
        """

    @property
    def quantised(self) -> bool:
        """Whether the linears are computed in another format than the model's."""
        return self.gate is not None

    def stored(
        self, weight: Tensor, dtype: torch.dtype, *, reference: bool = False
    ) -> dict[str, Tensor]:
        """What is stored of a weight.

        Args:
            weight: [N, K] in the checkpoint's dtype.
            dtype: of the model.
            reference: by the reference quantiser, not by the one that writes the files.

        Raises:
            VerificationFailed: the recipe has no gate, and stores anything but the weight.
        """
        import torch

        made = (self.reference if reference else self.convert)(weight, dtype)
        if self.gate is None:
            plain = weight.to(dtype)
            same = made.keys() == {WEIGHT} and made[WEIGHT].dtype == dtype
            if not (same and torch.equal(made[WEIGHT], plain)):
                raise VerificationFailed(
                    f"recipe {self.name!r} changes a weight and has no gate",
                    where="fastwan.export.recipes",
                    fix="a quantised recipe needs one: see Recipe.gate",
                )
        return made

    @abstractmethod
    def convert(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the exporter writes of a weight [N, K]; `stored` is what callers use."""

    @abstractmethod
    def reference(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same by an implementation of its own, which the files are held against."""

    @property
    def activation_name(self) -> str | None:
        """Row of `fastwan.config.ACTIVATIONS`; None where the recipe leaves no choice."""
        return None

    @property
    def activation_scales(self) -> dict[str, float]:
        """By linear, what a calibration decided."""
        return {}

    def with_activation(self, activation: str, scales: Mapping[str, float]) -> Recipe:
        """The recipe with another way to scale activations.

        Args:
            activation: row of `fastwan.config.ACTIVATIONS`.
            scales: by linear, where a calibration decides them.

        Raises:
            BadInput: the recipe leaves no choice, or has not this one.
        """
        raise BadInput(
            f"recipe {self.name} leaves no choice of the activation scale",
            where="--activation-scale",
            fix="leave it out",
        )

    def of_input(self, linear: str) -> dict[str, Tensor]:
        """What is stored of a linear's activation, beside what is stored of its weight.

        Args:
            linear: its name in the graph.

        Raises:
            BadInput: the recipe needs a calibration that has not seen the linear.
        """
        return {}

    @abstractmethod
    def merge(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """One weight of several with the same K, row after row.

        Returns:
            What is stored of it, and for each part the fp32 factor that its rows of the product
            are still to be multiplied by, [parts].
        """

    @abstractmethod
    def buffers(self, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Empty tensors as `stored` makes them for a weight [outputs, inputs]."""

    @abstractmethod
    def multiply(
        self,
        x: Tensor,
        stored: Mapping[str, Tensor],
        *,
        quantize_activation: bool,
        tokens: int | None = None,
    ) -> Tensor:
        """``x @ weight^T`` in the dtype of `x`, as the module is traced and as it computes.

        Args:
            x: [..., K].
            stored: the buffers.
            quantize_activation: quantise `x` too, where the recipe does.
            tokens: rows of `x` that are no padding; None where all are.
        """

    def translations(self) -> dict[Any, Callable[..., Any]]:
        """ONNX functions of the torch operators that `multiply` calls.

        As ``torch.onnx.export(custom_translation_table=...)`` takes them; none by default.
        """
        return {}

    @abstractmethod
    def expand(self, model: ir.Model) -> tuple[ir.Model, bool]:
        """Replace what `multiply` was traced to by what the builder is to get, in place.

        Requires: nodes have the names of `fastwan.export.linear_names`.
        Ensures: each linear is a MatMul node of the name that its traced node had.
        """

    def arrange(self, model: ir.Model) -> bool:
        """Rewrite a part of a step as the builder computes it best; nothing by default.

        In place; returns whether anything changed. The CPU reference keeps the graph as it is.
        """
        return False

    def scale_behind(self, model: ir.Model) -> bool:
        """Move factors of whole weights out of the GEMMs, into the lifted nodes behind them.

        In place; returns whether there was any. A recipe that engines cannot be given weights of
        leaves everything as it is.
        """
        return False

    def scale_rows(self, model: ir.Model) -> bool:
        """Leave factors of the rows of qkv to the attention nodes; nothing by default.

        Asked where the attention takes them, see `Attention.takes_row_scales`. In place; returns
        whether there was any.
        """
        return False

    def bare_gemm(self, segment: ir.Model) -> BareGemm | None:
        """A segment that is one GEMM as a graph that is given its weight; None for any other."""
        return None

    @abstractmethod
    def lower(self, model: ir.Model, *, quantize_activations: bool) -> bool:
        """Replace what `expand` left by standard operators of the same numerics, in place.

        Args:
            model: may hold linears of other recipes, which are left alone.
            quantize_activations: false leaves the activations unquantised.

        Returns:
            Whether there was anything to replace.
        """


class Tensorlike(Protocol):
    """A tensor of a layer record."""

    @property
    def dtype(self) -> str:
        """The builder's word for it, e.g. ``FP4E2M1``, ``BFloat16``, ``Half``."""

    def elements(self) -> int:
        """Number of elements."""


class Kernel(Protocol):
    """What a gate asks of a layer record of an engine."""

    @property
    def kind(self) -> str:
        """``gemm``, ``attention``, ``convolution``, ``memory`` or ``host``."""

    @property
    def operands(self) -> Sequence[Tensorlike]:
        """Of a GEMM (activation, weight), where found."""


class Fault(Exception):
    """Why a linear of a graph is not of its recipe."""


class Gate(ABC):
    """How a graph and an engine are held to a recipe, linear by linear.

    Attributes:
        label: the format in messages and in the names of checks.
        wanted: what an engine has to compute a linear by, in words.
        fix: what keeps it that, for the message of an engine that was refused.
    """

    label: ClassVar[str]
    wanted: ClassVar[str]
    fix: ClassVar[str]

    @abstractmethod
    def weight_elements(self, graph: GraphIndex, node: str) -> int:
        """Number of elements of a linear's weight in the format of the recipe.

        Args:
            graph: as the builder gets it.
            node: name of the linear's MatMul.

        Raises:
            Fault: weight or activation are not what the recipe makes them.
        """

    @abstractmethod
    def computes(self, kernel: Kernel) -> bool:
        """Whether a kernel is a GEMM of two operands in the format of the recipe.

        One that only quantises, moves scales or unpacks names the MatMul too and is none.
        """
