"""``build-engine``: from a checkpoint to an engine bundle, through a temporary ONNX bundle."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastwan.calibration import CALIBRATED, calibrate, read_prompts
from fastwan.config import (
    COMPONENTS,
    MODELS,
    SAMPLERS,
    TARGETS,
    ModelPreset,
    SamplerSpec,
    Target,
    VideoShape,
)
from fastwan.engines.backend import Backend, check_served, load_backend
from fastwan.engines.build import build_bundle
from fastwan.engines.builder import BuildRequest, KnownPlan
from fastwan.engines.cache import EngineCache
from fastwan.engines.plan import choose_fusion, default_weights, plan_sources
from fastwan.errors import BadInput, EnvironmentLacks, FastWanWarning
from fastwan.export.attentions import Attention, find_attention
from fastwan.export.cache import ExportCache
from fastwan.export.checkpoint.lora import open_lora, parse_lora
from fastwan.export.checkpoint.reader import Checkpoint, open_checkpoint
from fastwan.export.checkpoint.scheduler import overruled
from fastwan.export.onnx_bundle import export_onnx_bundle
from fastwan.export.passes.fusions import find_fusion
from fastwan.export.recipes import find_recipe
from fastwan.manifest import Manifest
from fastwan.outputs import OutputFolder
from fastwan.progress import Progress
from fastwan.staging import staging
from fastwan.tables import lookup, require_listed
from fastwan.target_checks import require_attention, require_recipe

AUTO = "auto"
"""Value of an option that leaves the choice to this tool."""


@dataclass(frozen=True)
class Caches:
    """Where finished parts are taken from and left."""

    exports: ExportCache
    engines: EngineCache


@dataclass(frozen=True)
class BuildSpec:
    """Options of ``build-engine``; None leaves a choice to the checkpoint or the tables.

    Attributes:
        checkpoint: folder, file of a transformer, or Hugging Face id.
        revision: branch, tag or commit of a Hugging Face id.
        output: folder of the bundle; replaced if all of it is a bundle of this tool.
        taehv: weight file of the decoder, where the checkpoint has none.
        model: row of `fastwan.config.MODELS`.
        target: row of `fastwan.config.TARGETS`.
        backend: builder of the engines.
        attention: the model's own where None.
        fusion: row of `fastwan.config.FUSIONS`; "auto" takes the fastest that backend, attention
            and transformer allow.
        weights: row of `fastwan.config.WEIGHTS`; data where None and `fusion` leaves bare GEMMs.
        sampler: default of the bundle; "auto" takes the checkpoint's.
        height: of the video in pixels; the checkpoint's own where None.
        width: likewise.
        num_frames: likewise.
        components: parts of the model to build.
        use_cache: take finished parts from the cache and leave new ones there.
        text_encoder_recipe: recipe of the text encoder's linears.
        activation_scale: row of `fastwan.config.ACTIVATIONS`; the recipe's own default where None.
        calibration: prompts of a static activation scale, one a line.
        lora: LoRA files that are merged into the transformer, in this order, as FILE[:scale].
        force: replace the output whatever it holds.
        shapes: of the video, in place of height, width and frames; the first is the default.
    """

    checkpoint: str
    output: Path
    revision: str | None = None
    taehv: Path | None = None
    model: str | None = None
    target: str = "rtx5090"
    backend: str = "tensorrt-rtx"
    attention: str | None = None
    fusion: str = AUTO
    weights: str | None = None
    sampler: str = AUTO
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    components: tuple[str, ...] = COMPONENTS
    use_cache: bool = True
    text_encoder_recipe: str = "bf16"
    activation_scale: str | None = None
    calibration: Path | None = None
    lora: tuple[str, ...] = ()
    force: bool = False
    shapes: tuple[VideoShape, ...] = ()

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Where the weights come from: the checkpoint, the decoder's file, LoRA files."""
        taehv = () if self.taehv is None else (self.taehv,)
        return (Path(self.checkpoint), *taehv, *(parse_lora(each)[0] for each in self.lora))

    def __post_init__(self) -> None:
        if self.shapes and (self.height, self.width, self.num_frames) != (None, None, None):
            raise BadInput(
                "a shape is given twice",
                where="--shape, --height, --width, --num-frames",
                fix="--shape WxHxF, once for each shape, is enough",
            )
        require_listed(COMPONENTS, self.components, "component", "--components")
        if self.lora and "dit" not in self.components:
            raise BadInput("a LoRA is of the transformer, which is not built", where="--lora")


def build_engine(
    spec: BuildSpec,
    progress: Progress,
    *,
    plans: Mapping[VideoShape, Mapping[str, KnownPlan]] | None = None,
    read: Collection[Path] = (),
    caches: Caches | None = None,
) -> Manifest:
    """Export a checkpoint, build its engines, write the bundle of one shape.

    Args:
        spec: with one shape at most; `fastwan.build_shapes.build_bundle_of_shapes` takes several.
        plans: of another bundle, by shape, see `BuildRequest`.
        read: folders that the output may not replace, beside the checkpoint's.
        caches: in place of the user's, also where `spec` leaves these alone.

    Raises:
        BadInput: checkpoint, option or output folder at fault.
        EnvironmentLacks: the backend or a library of the exporter is missing, or the limit of the
            cache is no number.
        VerificationFailed: an engine lost the format of a linear, or a recipe has no gate.
    """
    started = time.monotonic()
    # First of all: what is wrong with the cache is said before the work.
    if caches is None and spec.use_cache:
        caches = Caches(ExportCache(), EngineCache())
    loras = [parse_lora(each) for each in spec.lora]
    output = OutputFolder(spec.output, "bundle", spec.force, inputs=(*spec.weight_files, *read))
    output.tell_what_is_deleted()
    target = lookup(TARGETS, spec.target, "target")
    backend = load_backend(spec.backend)
    check_served(backend, target)
    backend.check(target)
    text_recipe = find_recipe(spec.text_encoder_recipe)
    named = None if spec.fusion == AUTO else find_fusion(spec.fusion)
    checkpoint = open_checkpoint(
        spec.checkpoint,
        taehv=spec.taehv,
        components=spec.components,
        model=spec.model,
        revision=spec.revision,
    )
    checkpoint = checkpoint.adapted(
        [open_lora(path, scale, checkpoint.dit_config) for path, scale in loras]
    )
    preset = lookup(MODELS, checkpoint.model_name, "model")
    recipe = find_recipe(preset.recipe, spec.activation_scale)
    prompts = _calibration_prompts(spec)
    made_for = find_attention(preset.attention)
    attention = made_for if spec.attention is None else find_attention(spec.attention)
    if "dit" in spec.components:
        require_recipe(target, recipe.name, preset.name, _fitting(preset, target))
    if "text_encoder" in spec.components:
        usable = f"--text-encoder-recipe, one of {', '.join(target.recipes)}"
        require_recipe(target, text_recipe.name, "its text encoder", usable)
    require_attention(target, attention.name)
    notes = list(checkpoint.notes)
    samplers = _samplers(spec, checkpoint, preset, notes)
    if prompts and "dit" in spec.components:
        seen = find_recipe(preset.recipe)
        scales = calibrate(checkpoint, seen, samplers[0], prompts, notes, progress)
        recipe = recipe.with_activation(CALIBRATED, scales)
    for note in notes:
        warnings.warn(note, FastWanWarning, stacklevel=2)
    shape = _shape(spec, checkpoint)
    library = plugin_library(attention, backend)
    with staging(output.target.parent) as folder:
        exported = export_onnx_bundle(
            checkpoint,
            folder,
            shape=shape,
            recipe=recipe,
            text_encoder_recipe=text_recipe,
            attention=made_for,
            sampler=samplers[0],
            notes=tuple(notes),
            components=spec.components,
            cache=None if caches is None else caches.exports,
            progress=progress,
        )
        export_seconds = time.monotonic() - started
        plugins = backend.takes_plugins
        fusion = named or choose_fusion(folder, exported, attention=attention, plugins=plugins)
        weights = default_weights(fusion, recipe) if spec.weights is None else spec.weights
        sources, regions = plan_sources(
            folder,
            exported,
            attention=attention,
            fusion=fusion,
            weights=weights,
            plugins=plugins,
            components=spec.components,
        )
        request = BuildRequest(
            target=target,
            backend=backend,
            attention=attention.name,
            fusion=fusion.name,
            weights=weights,
            samplers=samplers,
            components=tuple(name for name in COMPONENTS if name in spec.components),
            plugin_library=library,
            use_cache=caches is not None,
            move_onnx=True,
            started=started,
            stages=(("export", export_seconds),),
            plans=(plans or {}).get(shape, {}),
        )
        return build_bundle(
            folder,
            output,
            sources,
            request,
            regions=regions,
            cache=None if caches is None else caches.engines,
            progress=progress,
        )


def _calibration_prompts(spec: BuildSpec) -> tuple[str, ...]:
    """Prompts to calibrate with; none where activation scales are computed.

    Raises:
        BadInput: a file of prompts that nothing would read, or that cannot be read.
    """
    if spec.activation_scale == CALIBRATED:
        return read_prompts(spec.calibration)
    if spec.calibration is not None:
        raise BadInput(
            "nothing is calibrated",
            where="--calibration",
            fix=f"pass --activation-scale {CALIBRATED} too",
        )
    return ()


def _fitting(preset: ModelPreset, target: Target) -> str:
    """Targets of a model, and models of a target, for the message of a pair that is refused."""
    runnable = [each for each in MODELS.values() if each.recipe in target.recipes]
    quantised = [each for each in runnable if find_recipe(each.recipe).quantised]
    models = [each.name for each in quantised or runnable]
    text = f"one of {', '.join(preset.targets)}"
    return f"{text}; {target.name} runs {', '.join(models)}" if models else text


def _samplers(
    spec: BuildSpec, checkpoint: Checkpoint, preset: ModelPreset, notes: list[str]
) -> tuple[SamplerSpec, ...]:
    """Those of the model, the chosen one first, as the checkpoint's scheduler has it.

    Args:
        notes: told of what differs from the published constants, and of what a choice overrules.

    Raises:
        BadInput: the model was not trained for the chosen one.
    """
    offered = {name: lookup(SAMPLERS, name, "sampler") for name in preset.samplers}
    if spec.sampler != AUTO:
        first = lookup(offered, spec.sampler, "sampler")
        notes += overruled(checkpoint.scheduler, first)
    else:
        told = checkpoint.default_sampler
        first = offered.get(told, offered[preset.samplers[0]])
        if first.kind != SAMPLERS[told].kind:
            notes.append(
                f"sampler {first.name} is played, for which {preset.name} was made, not {told} of "
                f"{checkpoint.pipeline_class}"
            )
        if checkpoint.scheduler is not None:
            first = checkpoint.scheduler.sampler(first, notes)
    return (first, *(each for each in offered.values() if each.name != first.name))


def _shape(spec: BuildSpec, checkpoint: Checkpoint) -> VideoShape:
    if spec.shapes:
        (shape,) = spec.shapes
        return shape
    default = checkpoint.default_shape
    return VideoShape(
        height=default.height if spec.height is None else spec.height,
        width=default.width if spec.width is None else spec.width,
        num_frames=default.num_frames if spec.num_frames is None else spec.num_frames,
    )


def plugin_library(attention: Attention, backend: Backend) -> Path | None:
    """The plugin library to put into the bundle, if it has been built.

    Raises:
        EnvironmentLacks: the engine cannot be built without it, or none lies where
            ``$FASTWAN_PLUGIN_LIBRARY`` says.
        BadInput: it is no library for this machine, or it emulates FP4.
    """
    if not attention.uses_library:
        return None
    from fastwan.plugins.library_file import check_elf, refuse_emulated
    from fastwan.plugins.loader import LIBRARY_VARIABLE, find_library

    try:
        library = find_library()
    except EnvironmentLacks:
        if backend.takes_plugins or os.environ.get(LIBRARY_VARIABLE):
            raise
        return None
    check_elf(library)
    refuse_emulated(library)
    return library
