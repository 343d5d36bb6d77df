"""LoRA files of a bundle: held against its manifest, and what quantising makes of their weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from fastwan.errors import BadInput
from fastwan.export.checkpoint.lora import Adapted, open_lora, parse_lora
from fastwan.export.checkpoint.reader import Checkpoint
from fastwan.export.recipes import Recipe
from fastwan.export.weight_groups import weight_groups
from fastwan.manifest import Model
from fastwan.quality.verify.report import LoraBlock
from fastwan.quality.verify.subject import Subject

_ROWS = 64
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def adapted(checkpoint: Checkpoint, model: Model, given: Sequence[str]) -> Checkpoint:
    """A checkpoint with the LoRA files that a bundle was built with.

    Args:
        given: the files, as FILE[:scale].

    Raises:
        BadInput: others than the manifest names, or in another order.
    """
    loras = [
        open_lora(path, scale, checkpoint.dit_config) for path, scale in map(parse_lora, given)
    ]
    found = [(each.record.sha256, each.record.scale) for each in loras]
    if found != [(each.sha256, each.scale) for each in model.adapters]:
        wanted = " ".join(f"--lora {each.file}:{each.scale:g}" for each in model.adapters)
        raise BadInput(
            "these are not the LoRA files that the bundle was built with",
            where="--lora",
            fix=f"pass {wanted}, the same files" if wanted else "leave it out",
        )
    return checkpoint.adapted(loras)


@torch.no_grad()
def lora_blocks(subject: Subject) -> tuple[LoraBlock, ...]:
    """What LoRA files change in each block, and the error of its quantised weights beside before.

    Without a checkpoint there is nothing to compare: the bundle holds the merged weights alone.
    """
    tensors = None if subject.checkpoint is None else subject.checkpoint.transformer
    if not isinstance(tensors, Adapted):
        return ()
    sums: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for group in weight_groups(subject.dit_config):
        for source in group.sources if group.targeted else ():
            block = _BLOCK.match(source)
            name = f"{source}.weight"
            if block is not None and name in tensors.changed:
                before, after = tensors.source.read(name).float(), tensors.read(name)
                sums[int(block[1])].append(_squares(subject.recipe, before, after))
    figures = []
    for index, rows in sorted(sums.items()):
        change, *errors, power, power_after = (sum(each) for each in zip(*rows, strict=True))
        figures.append(
            LoraBlock(
                block=index,
                linears=len(rows),
                change=(change / power) ** 0.5,
                error_without=(errors[0] / power) ** 0.5,
                error_with=(errors[1] / power_after) ** 0.5,
            )
        )
    return tuple(figures)


def _squares(recipe: Recipe, before: Tensor, after: Tensor) -> tuple[float, ...]:
    """Squares of products of drawn rows: of the change, the two errors and the two products."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, before.shape[1], generator=generator)

    def error(weight: Tensor) -> Tensor:
        stored = recipe.stored(weight, torch.bfloat16, reference=True)
        return recipe.multiply(x, stored, quantize_activation=False) - x @ weight.t()

    products = (
        x @ (after - before).t(), error(before), error(after), x @ before.t(), x @ after.t(),
    )  # fmt: skip
    return tuple(float(each.double().square().sum()) for each in products)
