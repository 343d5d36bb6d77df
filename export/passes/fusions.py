"""Fusions, a row each from slow to fast: which patterns are lifted out of the builder's sight.

What a fusion lifts becomes a node of the domain ``fastwan``, which the project's own kernels
compute between two engines. The ONNX file, the CPU reference and `verify` keep the graph as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from fastwan.config import FUSIONS
from fastwan.errors import BadInput
from fastwan.export.attentions import Attention
from fastwan.export.glue_schemas import register_glue
from fastwan.export.passes.graphs import FASTWAN, clone
from fastwan.export.passes.lift_cross_attention import lift_cross_attention
from fastwan.export.passes.lift_gelu import lift_gelu
from fastwan.export.passes.lift_quantiser import lift_quantiser
from fastwan.export.passes.lift_residual_norm import lift_residual_norm
from fastwan.tables import implementation

Lift = Callable[[ir.Model], tuple[ir.Model, bool]]
"""A pass over the whole transformer."""


@dataclass(frozen=True)
class Fusion:
    """What is lifted.

    Attributes:
        name: in the table of names, the manifest and on the command line.
        lifts: passes, in the order in which they run.
        bare: whether GEMMs are left alone in their engines, which can then be given their weights.
    """

    name: str
    lifts: tuple[Lift, ...] = ()
    bare: bool = False

    def apply(self, model: ir.Model) -> ir.Model:
        """The transformer with the patterns of this fusion lifted.

        Args:
            model: as ``dit.onnx`` holds it; left unchanged.

        Raises:
            BadInput: the graph has nothing that one of the passes lifts.
        """
        register_glue()
        lifted = clone(model) if self.lifts else model
        for each in self.lifts:
            if not each(lifted)[1]:
                raise BadInput(
                    f"the transformer has nothing for {each.__name__} to lift",
                    where=f"fusion {self.name}",
                    fix=f"--fusion {NONE.name}",
                )
        return lifted

    def fits(self, model: ir.Model) -> bool:
        """Whether the transformer has all that the fusion lifts.

        Args:
            model: left unchanged.
        """
        lifted = clone(model) if self.lifts else model
        return all(each(lifted)[1] for each in self.lifts)

    def require_outside(
        self, model: ir.Model, lifted: ir.Model, engines: Iterable[ir.Model]
    ) -> None:
        """Refuse engines that hold what was lifted: no builder has it.

        An attention may put a node of its own in the place of the exported one.

        Args:
            model: the transformer before `apply`.
            lifted: behind it.

        Raises:
            BadInput: one of them holds such a node.
        """
        before, behind = (
            {node.op_type for node in graph.graph if node.domain == FASTWAN}
            for graph in (model, lifted)
        )
        for node in (node for engine in engines for node in engine.graph):
            if node.domain == FASTWAN and node.op_type in behind - before:
                raise BadInput(
                    f"an engine cannot hold the node {node.op_type}",
                    where=f"fusion {self.name}",
                    fix=f"--fusion {NONE.name}, or a backend and an attention that divide there",
                )


NONE = Fusion("none")

IMPLEMENTED: dict[str, Fusion] = {
    each.name: each
    for each in (
        NONE,
        Fusion("gelu", (lift_gelu,)),
        Fusion("gelu+cross", (lift_gelu, lift_cross_attention)),
        Fusion(
            "all",
            (lift_gelu, lift_cross_attention, lift_residual_norm, lift_quantiser),
            bare=True,
        ),
    )
}


def fastest_fusion(model: ir.Model, attention: Attention, *, plugins: bool) -> Fusion:
    """The last of the table that the engines can be divided for.

    What is lifted is launched between engines. So it needs the plugin library, and an attention and
    a backend that divide the transformer at nodes of the domain.

    Args:
        model: the transformer.
        plugins: whether the backend's engines hold nodes of the plugin library.
    """
    if plugins or not attention.uses_library:
        return NONE
    return next(each for each in reversed(IMPLEMENTED.values()) if each.fits(model))


def find_fusion(name: str) -> Fusion:
    """The fusion of that name.

    Raises:
        BadInput: no name of the tables, or one that nothing implements.
    """
    return implementation(FUSIONS, IMPLEMENTED, name, "fusion")
