"""The checks of `verify --device emulated`: a bundle at its full size, all blocks, every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fastwan.export.attentions import Form
from fastwan.manifest import Manifest
from fastwan.plugins import nvfp4
from fastwan.plugins.lifted import TEXT, derived
from fastwan.plugins.regions import REGIONS
from fastwan.quality.emulated.comparison import psnr, ssim
from fastwan.quality.emulated.module import Reference
from fastwan.quality.emulated.watch import watched
from fastwan.quality.verify.graphs import random_inputs, relative_difference
from fastwan.quality.verify.report import BlockFigure, Check, FP4Comparison, StepFigure
from fastwan.quality.verify.steps import MARGIN, PIXEL_FLOOR, rms
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.session import Platform, Session
from fastwan.runtime.emulated import fp4
from fastwan.runtime.emulated.engines import Torch
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import combine, denoise
from fastwan.runtime.model.noise import DEFAULT_SEED, draw
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.operations import LaunchRegion, RunEngine
from fastwan.runtime.recording.recorder import COMPUTE
from fastwan.runtime.recording.tensors import Tensor as RecordedTensor

REGIONS_CHECK, PROMPT_CHECK = "emulated_regions", "emulated_prompt"
LOG_LIMIT = 2.0**-20
"""Of what a region reads of a prompt: a logarithm of at most 512, to two of its last units."""

TRIALS = 2
"""Runs of the module with its scales moved; each costs a video of it."""

UNCHECKED = (
    "the FP4 instructions of a Blackwell GPU",
    "TensorRT's kernels: their rounding, nibble order and scale layout",
    "every time: an emulated one is no prediction",
)
"""What no GPU without FP4 can show."""


@dataclass(frozen=True)
class Setting:
    """Where a bundle is run, and what its reference's attention is.

    Attributes:
        platform: that emulates the target.
        at: torch's view of the platform's memory.
        attention: of the module; regions are held against their own reference beside.
    """

    platform: Platform
    at: Torch
    attention: Form


class FullSize:
    """One run of a bundle on an emulating device, and the module beside it.

    Args:
        subject: its `check_shape` is the bundle's own shape.
    """

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.subject = subject
        self._setting = setting
        self.schedule = schedule_of(subject.manifest.sampler_spec())
        platform, self.watch = watched(setting.platform, setting.at)
        self._session = Session(platform, subject.bundle, self.schedule)
        shape = self._session.recording.latents.shape
        generator = torch.Generator().manual_seed(DEFAULT_SEED)
        self.noises = draw(shape, self.schedule, generator)
        self.text = random_inputs(subject)[1]

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.subject, self._setting.attention, self.device)

    @cached_property
    def context(self) -> list[tuple[Any, Any]]:
        return self.reference.context(self.text)

    @cached_property
    def velocities(self) -> list[tuple[Array, int, Array]]:
        """Latents, timestep and velocity of each step; what passed in the first one is watched."""
        session, player = self._session, self._session.load()
        # Another prompt first: keys that stay from it would show.
        session.prepare(random_inputs(self.subject, seed=1)[1])
        session.prepare(self.text)
        for tensor, noise in zip(session.recording.noises, self.noises, strict=True):
            player.memory.write(tensor, noise)
        first = [stage for stage in session.recording.stages if stage.name == "step_0"]
        self.watch.launches = [
            operation for stage in first for operation in stage.operations
            if isinstance(operation, LaunchRegion)
        ]  # fmt: skip
        self.watch.on = True
        try:
            player.enqueue(first)
            player.synchronize()
        finally:
            self.watch.on = False
        seen: list[tuple[Array, int, Array]] = []
        latents = self.noises[0]

        def on_step(index: int, timestep: int, state: Array) -> None:
            nonlocal latents
            seen.append((latents, timestep, self._velocity(index)))
            latents = state

        session.denoise(self.noises, on_step)
        return seen

    def _velocity(self, index: int) -> Array:
        """What the transformer made in a step that has just run."""
        session = self._session
        (stage,) = (s for s in session.recording.stages if s.name == f"step_{index}")
        made = [
            operation.outputs["velocity"]
            for operation in stage.operations
            if isinstance(operation, RunEngine) and "velocity" in operation.outputs
        ]
        player = session.load()
        player.device.synchronize(player.streams[COMPUTE])
        return np.asarray(self._content(made[-1]).float().cpu().numpy())

    def _content(self, tensor: RecordedTensor) -> torch.Tensor:
        """What lies in a tensor of the recording."""
        player = self._session.load()
        return self._setting.at.tensor(player.address(tensor), tensor.shape, tensor.dtype)

    @cached_property
    def of_prompt(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """What regions read of a prompt and the exported graph does not hold, by name.

        Each as it lies on the device after the video of `velocities`, and as it follows from the
        prompt.
        """
        _ = self.velocities
        text = torch.from_numpy(self.text).to(self.device, torch.bfloat16)
        found = {}
        for operation in (o for stage in self._session.recording.stages for o in stage.operations):
            made = operation.outputs if isinstance(operation, RunEngine) else {}
            for name, tensor in made.items():
                known = derived(name)
                if known is not None and known.source == TEXT:
                    found[name] = self._content(tensor), known.compute(text)
        return found

    @cached_property
    def frames(self) -> Array:
        """The video from noise, as one launch."""
        return self._session.video(self.noises).copy()

    def decode(self, latents: Array) -> Array:
        """Frames of latents by the bundle's decoder."""
        return self._session.decode(latents).copy()

    @property
    def device(self) -> torch.device:
        """Where the module runs."""
        return self._setting.at.device

    @property
    def has_frames(self) -> bool:
        return self._session.recording.frames is not None

    def latents_of(self, velocity: Callable[[Array, int], Array]) -> Array:
        """Clean latents where a model goes its own way from the same noise."""
        return denoise(velocity, self.noises[0], self.schedule, self.noises[1:], combine=combine)

    def close(self) -> None:
        self._session.close()


def check_operands(full: FullSize) -> Check:
    """Operands of the FP4 GEMMs, products of codes and block scales, against plugins/nvfp4.py."""
    _ = full.velocities
    stored, operands = full.reference.module.state_dict(), dict(full.watch.operands)
    differing, compared, missing = 0, 0, 0
    linears = [
        linear for graph in full.subject.graphs.values() for linear in graph.linears
        if f"{linear.name}.weight_scale" in stored
    ]  # fmt: skip
    for linear in linears:
        operand = operands.get(f"{linear.name}/transposed/out")
        if operand is None:
            missing += 1
            continue
        scale = stored[f"{linear.name}.weight_scale_2"]
        one = torch.ones((), device=scale.device)
        packed, blocks = stored[f"{linear.name}.weight"], stored[f"{linear.name}.weight_scale"]
        expected = nvfp4.dequantize_weight(nvfp4.PackedWeight(packed, blocks, one))
        differing += int((operand.products.t().float() != expected).sum())
        differing += int(operand.scale != float(scale))
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


def check_regions(full: FullSize) -> list[Check]:
    """Every region of the first step against its reference, on what it was given there.

    Returns:
        a check for each kind of region in the bundle.
    """
    _ = full.velocities
    return [_check_kind(full, op) for op in kinds(full.subject.manifest)]


def kinds(manifest: Manifest) -> tuple[str, ...]:
    """Kinds of regions that a bundle has, in the order of their table."""
    held = {node.op for region in manifest.regions.values() for node in region.nodes}
    return tuple(op for op in REGIONS if op in held)


def _check_kind(full: FullSize, op: str) -> Check:
    seen = [figure for figure in full.watch.regions if figure.op == op]
    regions = full.subject.manifest.regions.values()
    expected = sum(node.op == op for region in regions for node in region.nodes)
    limit = REGIONS[op].limit
    zero = all(figure.padding_is_zero for figure in seen)
    return Check(
        name=f"{REGIONS_CHECK}_{op}",
        metric="relative L2 difference of a region to its reference"
        if limit
        else "bytes of a region that differ from its reference",
        value=max(figure.difference for figure in seen)
        if len(seen) == expected and zero and expected
        else None,
        limit=limit,
        label="emulated",
        note=f"{len(seen)} of {expected} regions; at least "
        f"{min((figure.equal for figure in seen), default=0.0):.3%} of elements equal; padding "
        + ("zero" if zero else "NOT zero"),
    )


def prompt_checks(manifest: Manifest) -> tuple[str, ...]:
    """`PROMPT_CHECK` for a bundle whose regions read of a prompt what its graph does not hold."""
    made = (spec.name for engine in manifest.engines.values() for spec in engine.outputs)
    known = (derived(name) for name in made)
    return (PROMPT_CHECK,) if any(each and each.source == TEXT for each in known) else ()


def check_prompt(full: FullSize) -> Check:
    """What regions read of the prompt, such as how many of its keys count, against the prompt."""
    values = full.of_prompt
    moved = [
        float(
            (found.double() - expected.double())
            .masked_fill(found == expected, 0.0)  # minus infinity, too
            .nan_to_num(1.0, posinf=1.0, neginf=1.0)
            .abs()
            .max()
        )
        for found, expected in values.values()
    ]
    return Check(
        name=PROMPT_CHECK,
        metric="largest difference of what regions read of the prompt to what follows from it",
        value=max(moved, default=None),
        limit=LOG_LIMIT,
        label="emulated",
        note=", ".join(values),
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
            ssim=ssim(videos[0], videos[1], full.device) if videos else None,
        ),
        videos,
    )
