"""The checks of `verify --device emulated`: a bundle at its full size, all blocks, every step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from fastwan.plugins import nvfp4
from fastwan.quality.emulated.full_size import FullSize
from fastwan.quality.emulated.region_checks import check_prompt, check_regions, prompt_checks
from fastwan.quality.frames import psnr, ssim
from fastwan.quality.verify.graphs import relative_difference
from fastwan.quality.verify.report import BlockFigure, Check, FP4Comparison, StepFigure
from fastwan.quality.verify.steps import MARGIN, PIXEL_FLOOR, rms
from fastwan.runtime.emulated import fp4
from fastwan.runtime.model.executor import Array

TRIALS = 2
"""Runs of the module with its scales moved; each costs a video of it."""

UNCHECKED = (
    "the FP4 instructions of a Blackwell GPU",
    "TensorRT's kernels: their rounding, nibble order and scale layout",
    "every time: an emulated one is no prediction",
)
"""What no GPU without FP4 can show."""


def check_operands(full: FullSize) -> Check:
    """Operands of the FP4 GEMMs, products of codes and block scales, against plugins/nvfp4.py."""
    _ = full.velocities
    stored, operands = full.reference.module.state_dict(), dict(full.watch.operands)
    differing, compared, missing = 0, 0, 0
    engines = full.subject.manifest.engines.values()
    given = {linear.name for each in engines if each.constants for linear in each.linears}
    linears = [
        linear for graph in full.subject.graphs.values() for linear in graph.linears
        if f"{linear.name}.weight_scale" in stored
    ]  # fmt: skip
    for linear in linears:
        operand = operands.get(f"{linear.name}/transposed/out")
        if operand is None:
            missing += 1
            continue
        # Of a weight that an engine is given, the node behind it has the scale.
        scale = 1.0 if linear.name in given else float(stored[f"{linear.name}.weight_scale_2"])
        packed, blocks = stored[f"{linear.name}.weight"], stored[f"{linear.name}.weight_scale"]
        one = torch.ones((), device=packed.device)
        expected = nvfp4.dequantize_weight(nvfp4.PackedWeight(packed, blocks, one))
        differing += int((operand.products.t().float() != expected).sum())
        differing += int(operand.scale != scale)
        compared += expected.numel()
    for hidden in full.watch.hidden.values():
        codes, block_scales = fp4.quantize(hidden, 1.0)
        packed, scales = nvfp4.quantize_activation(hidden, 1.0)
        values = nvfp4.decode_e2m1(nvfp4.unpack_nibbles(packed))
        grouped = values.view(*scales.shape, nvfp4.BLOCK) * scales.float()[..., None]
        differing += int((codes.products.float() != grouped.flatten(-2)).sum())
        differing += int((block_scales != scales.float()).sum())
        compared += values.numel()
    activations = len(full.watch.hidden)
    return Check(
        name="emulated_operands",
        metric="elements of FP4 operands that differ from the reference",
        value=None if missing or not (linears and activations) else float(differing),
        limit=0.0,
        label="emulated",
        note=f"{compared:,} elements: {len(linears) - missing} of {len(linears)} weights, "
        f"{activations} activations",
    )


def compare_blocks(full: FullSize) -> tuple[Check, tuple[BlockFigure, ...]]:
    """Each block of the first step on the hidden states that it was given there.

    Returns:
        the largest difference to the module in units of the module's own sensitivity, and what
        FP4 makes of each block.
    """
    _, timestep, _ = full.velocities[0]
    hidden, reference = full.watch.hidden, full.reference
    names = ["embed.hidden", *(f"blocks.{i}.hidden_out" for i in range(len(full.context) - 1))]
    ratios, figures = [], []
    for index, (before, after) in enumerate(pairwise(names)):
        if before not in hidden or after not in hidden:
            continue
        x, got = hidden[before], hidden[after]
        expected = reference.block(index, x, timestep, full.context)
        with reference.moved(index + 1):
            moved = reference.block(index, x, timestep, full.context)
        with reference.unquantised():
            plain = reference.block(index, x, timestep, full.context)
        tokens = slice(0, full.subject.shape.num_tokens)
        change = plain[:, tokens].float() - x[:, tokens].float()
        difference = _distance(expected, got, tokens)
        sensitivity = _distance(expected, moved, tokens)
        ratios.append(difference / max(sensitivity, _BF16_STEP))
        added = float((got[:, tokens].float() - plain[:, tokens].float()).norm() / change.norm())
        figures.append(BlockFigure(block=index, to_module=difference, fp4=added))
    check = Check(
        name="emulated_blocks",
        metric="difference to the torch module over the module's own sensitivity",
        value=max(ratios, default=None),
        limit=MARGIN,
        label="emulated",
        note=f"{len(ratios)} of {len(full.context)} blocks at timestep {timestep}; the last one "
        "ends inside an engine",
    )
    return check, tuple(figures)


_BF16_STEP = 2.0**-9
"""Least sensitivity of a block: half a unit in the last place of what it returns."""


def _distance(expected: torch.Tensor, got: torch.Tensor, tokens: slice) -> float:
    a, b = expected[:, tokens].float(), got[:, tokens].float()
    return float((a - b).norm() / a.norm())


def compare_video(full: FullSize) -> tuple[Sequence[Check], tuple[StepFigure, ...], list[Array]]:
    """Each step for the same latents, and the frames after each went its own way.

    Returns:
        the checks `step_i` and `frames`, what FP4 makes of each step, and the frames of the
        unquantised module and of the bundle.
    """
    reference, context = full.reference, full.context

    def run(latents: Array, timestep: int) -> Array:
        return reference.velocity(latents, timestep, context)

    checks, figures = [], []
    for index, (latents, timestep, got) in enumerate(full.velocities):
        expected = run(latents, timestep)
        moved = []
        for trial in range(1, 1 + TRIALS):
            with reference.moved(trial):
                moved.append(relative_difference(expected, run(latents, timestep)))
        with reference.unquantised():
            plain = run(latents, timestep)
        difference = relative_difference(expected, got)
        checks.append(
            Check(
                name=f"emulated_step_{index}",
                metric="relative L2 difference of the velocity to torch, quantised",
                value=difference,
                limit=MARGIN * max(moved),
                label="emulated",
                note=f"timestep {timestep}, full size; sensitivity {max(moved):.2e}",
            )
        )
        fp4_made = relative_difference(plain, got)
        figures.append(
            StepFigure(step=index, timestep=timestep, to_module=difference, fp4=fp4_made)
        )
    if not full.has_frames:
        return checks, tuple(figures), []
    expected_frames = full.decode(full.latents_of(run))
    with reference.moved(1):
        moved_frames = full.decode(full.latents_of(run))
    with reference.unquantised():
        plain_frames = full.decode(full.latents_of(run))
    sensitivity = rms(expected_frames, moved_frames)
    checks.append(
        Check(
            name="emulated_frames",
            metric="root mean square difference in levels to torch, quantised",
            value=rms(expected_frames, full.frames),
            limit=MARGIN * max(sensitivity, PIXEL_FLOOR),
            label="emulated",
            note=f"{len(full.frames)} frames, full size, one launch; sensitivity "
            f"{sensitivity:.2f} levels",
        )
    )
    return checks, tuple(figures), [plain_frames, full.frames]


def compare(full: FullSize) -> tuple[list[Check], FP4Comparison, list[Array]]:
    """All checks of the full size, what FP4 makes of the video, and both videos."""
    _ = full.velocities
    checks = [check_operands(full), *check_regions(full)]
    if prompt_checks(full.subject.manifest):
        checks.append(check_prompt(full))
    blocks_check, blocks = compare_blocks(full)
    full.watch.hidden.clear()
    steps_checks, steps, videos = compare_video(full)
    checks += [blocks_check, *steps_checks]
    return (
        checks,
        FP4Comparison(
            blocks=blocks,
            steps=steps,
            psnr=psnr(videos[0], videos[1]) if videos else None,
            ssim=ssim(videos[0], videos[1]) if videos else None,
        ),
        videos,
    )
