"""``swap-weights``: a bundle of other weights by the plans that a bundle has.

Where weights are data, no plan of a GEMM depends on them. So such a bundle of other weights is
built as ``build-engine`` builds it, byte for byte, but for these plans, which are taken over.
Engines that hold weights (time tables, keys and values of the prompt, decoder, text encoder) are
built anew.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastwan import __version__
from fastwan.build import BuildSpec
from fastwan.build_shapes import build_bundle_of_shapes
from fastwan.bundle import Bundle, open_bundle
from fastwan.config import MODELS, DecoderConfig, DiTConfig, TextEncoderConfig
from fastwan.engines.backend import load_backend
from fastwan.engines.builder import KnownPlan
from fastwan.engines.layer_json import bundle_layers
from fastwan.engines.plan import DATA
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.manifest import Manifest
from fastwan.progress import Progress
from fastwan.tables import lookup

if TYPE_CHECKING:
    from fastwan.export.checkpoint.reader import Checkpoint

_CONFIGS = (DiTConfig, DecoderConfig, TextEncoderConfig)


@dataclass(frozen=True)
class SwapSpec:
    """Options of ``swap-weights``.

    Attributes:
        bundle: of the same shapes, with weights as data; only read.
        checkpoint: folder, file of a transformer, or Hugging Face id.
        output: folder of the new bundle; replaced if all of it is a bundle of this tool.
        revision: branch, tag or commit of a Hugging Face id.
        taehv: weight file of the decoder, where the checkpoint has none.
        model: row of `fastwan.config.MODELS`; told by the checkpoint where None.
        lora: as of `BuildSpec`; those of the bundle are not taken over.
        use_cache: take finished parts from the cache and leave new ones there.
        force: replace the output whatever it holds.
    """

    bundle: Path
    checkpoint: str
    output: Path
    revision: str | None = None
    taehv: Path | None = None
    model: str | None = None
    lora: tuple[str, ...] = ()
    use_cache: bool = True
    force: bool = False


def swap_weights(spec: SwapSpec, progress: Progress) -> Manifest:
    """Write a bundle of another checkpoint's weights.

    Raises:
        BadInput: the bundle holds its weights in engines, the checkpoint has other shapes or
            another recipe, or see `build_engine`.
        EnvironmentLacks: this version or its builder is not what made the plans, or see there.
        VerificationFailed: a file of the bundle differs from its hash, or see there.
    """
    bundle = open_bundle(spec.bundle)
    manifest = bundle.manifest
    _require_data(bundle)
    _require_same_tools(manifest)
    checkpoint = open_checkpoint(
        spec.checkpoint,
        taehv=spec.taehv,
        components=manifest.components,
        model=spec.model,
        revision=spec.revision,
    )
    _require_same_model(manifest, checkpoint)
    # Its own as the checkpoint's scheduler has it, or the one that the bundle was built with.
    own = checkpoint.default_sampler == manifest.sampler
    wanted = BuildSpec(
        checkpoint=spec.checkpoint,
        output=spec.output,
        revision=spec.revision,
        taehv=spec.taehv,
        model=spec.model,
        lora=spec.lora,
        target=manifest.target,
        backend=manifest.backend,
        attention=manifest.attention,
        fusion=manifest.fusion,
        weights=manifest.weights,
        sampler="auto" if own else manifest.sampler,
        shapes=manifest.video_shapes,
        components=manifest.components,
        use_cache=spec.use_cache,
        text_encoder_recipe=_text_recipe(manifest),
        force=spec.force,
    )
    plans = {shape: known_plans(bundle.at(shape)) for shape in manifest.video_shapes}
    return build_bundle_of_shapes(wanted, progress, plans=plans, read=(spec.bundle,))


def known_plans(bundle: Bundle) -> dict[str, KnownPlan]:
    """Plans of a bundle's first shape that hold no weights, by the name of their file.

    Raises:
        BadInput: malformed layer records.
        VerificationFailed: a file differs from its hash.
    """
    layers = bundle_layers(bundle)
    found: dict[str, KnownPlan] = {}
    for name, engine in bundle.manifest.engines.items():
        plan = Path(engine.file).stem
        if engine.constants and plan not in found:
            record = bundle.manifest.engine_record(engine)
            path = bundle.file(engine.file)
            found[plan] = KnownPlan(path, record, name, layers[name], engine.scratch_bytes)
    return found


def _require_data(bundle: Bundle) -> None:
    if bundle.manifest.weights != DATA:
        raise BadInput(
            "the bundle holds its weights in engines, which have to be built anew",
            where=str(bundle.root),
            fix=f"build-engine with --fusion all --weights {DATA} makes one that can be swapped",
        )


def _require_same_tools(manifest: Manifest) -> None:
    made = {"fastwan-export": manifest.tool_version, **manifest.versions}
    here = {
        "fastwan-export": __version__,
        manifest.backend: load_backend(manifest.backend).version(),
    }
    if made != here:
        raise EnvironmentLacks(
            f"the plans were built by {_shown(made)}; here is {_shown(here)}",
            where="manifest.json",
            fix="build the other checkpoint with build-engine",
        )


def _shown(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _require_same_model(manifest: Manifest, checkpoint: Checkpoint) -> None:
    made = manifest.onnx.model
    preset = lookup(MODELS, checkpoint.model_name, "model")
    pairs = {
        "recipe": (made.recipe, preset.recipe),
        "transformer": (made.dit, checkpoint.dit_config),
    }
    if "decoder" in manifest.components:
        pairs["decoder"] = (made.decoder, checkpoint.decoder_config)
    if "text_encoder" in manifest.components:
        pairs["text encoder"] = (made.text_encoder, checkpoint.text_config)
    for what, (bundles, checkpoints) in pairs.items():
        if bundles != checkpoints:
            raise BadInput(
                f"the {what} of the checkpoint is not that of the bundle: "
                f"{_difference(checkpoints, bundles)}",
                where="--checkpoint",
                fix="build it with build-engine",
            )


def _difference(found: object, wanted: object) -> str:
    """Two values, or the fields in which two configurations differ."""
    if not isinstance(found, _CONFIGS) or not isinstance(wanted, _CONFIGS):
        return f"{found}, not {wanted}"
    other = asdict(wanted)
    return ", ".join(
        f"{name} {value}, not {other.get(name)}"
        for name, value in asdict(found).items()
        if value != other.get(name)
    )


def _text_recipe(manifest: Manifest) -> str:
    """Recipe of the text encoder's linears, the default where the bundle has none."""
    graph = manifest.onnx.graphs.get("text_encoder")
    formats = {linear.format for linear in graph.linears} if graph is not None else set()
    return formats.pop() if formats else BuildSpec.text_encoder_recipe
