"""What a target can run: asked before a build, and before a plan of one."""

from __future__ import annotations

from fastwan.config import Target
from fastwan.errors import BadInput


def require_recipe(target: Target, recipe: str, part: str, fix: str) -> None:
    """Refuse a recipe whose GEMMs a target lacks.

    Args:
        part: what needs it, for the message.

    Raises:
        BadInput: likewise.
    """
    if recipe not in target.recipes:
        raise BadInput(
            f"{target.gpu} has no {recipe} GEMM, which {part} needs", where="--target", fix=fix
        )


def require_attention(target: Target, attention: str) -> None:
    """Refuse an attention that a target cannot run.

    Raises:
        BadInput: likewise; the message lists those it can.
    """
    if attention not in target.attentions:
        raise BadInput(
            f"{target.gpu} cannot run the attention {attention}",
            where="--attention",
            fix="one of " + ", ".join(target.attentions),
        )
