"""Write an ONNX bundle: every exported graph of a model and ``export.json`` beside them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fastwan import __version__
from fastwan.config import SAMPLERS, SamplerSpec, VideoShape
from fastwan.errors import BadInput
from fastwan.export.attentions import Attention
from fastwan.export.cache import ExportCache
from fastwan.export.checkpoint.reader import Checkpoint
from fastwan.export.decoder_onnx import export_decoder
from fastwan.export.dit_onnx import export_dit
from fastwan.export.recipes import Recipe
from fastwan.export.text_encoder_onnx import export_text_encoder
from fastwan.manifest import ONNX_MANIFEST, Graph, Model, OnnxManifest
from fastwan.progress import Progress


def export_onnx_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    shape: VideoShape,
    recipe: Recipe,
    text_encoder_recipe: Recipe,
    attention: Attention,
    sampler: SamplerSpec,
    notes: tuple[str, ...] = (),
    components: Collection[str],
    cache: ExportCache | None = None,
    progress: Progress,
) -> OnnxManifest:
    """Export the components of a checkpoint into an existing, empty folder.

    Args:
        folder: gets the graphs, their data files and ``export.json``.
        shape: video shape; every graph but the text encoder is made for it.
        recipe: of the transformer's linears.
        text_encoder_recipe: of the text encoder's.
        attention: what the model was made for.
        sampler: default of the bundle.
        notes: kept in the manifest, see `fastwan.manifest.Model`.
        components: of ``dit``, ``decoder``, ``text_encoder``.
        cache: where finished parts are taken from and left.

    Raises:
        BadInput: the checkpoint lacks a component, or one of its tensors is at fault.
        EnvironmentLacks: a library of the exporter is missing.
        VerificationFailed: a recipe without a gate changes a weight.
    """
    graphs: dict[str, Graph] = {}
    digests: dict[str, str] = {}
    extra: tuple[str, ...] = ()
    if "dit" in components:
        exported, digests = export_dit(
            checkpoint.transformer,
            checkpoint.dit_config,
            shape,
            recipe,
            folder,
            attention=attention,
            cache=cache,
            progress=progress,
        )
        graphs |= exported
    if "decoder" in components:
        if checkpoint.decoder is None or checkpoint.decoder_config is None:
            raise _lacks(checkpoint, "decoder", "pass --taehv")
        graphs["decoder"] = export_decoder(
            checkpoint.decoder,
            checkpoint.decoder_config,
            shape,
            folder,
            cache=cache,
            progress=progress,
        )
    if "text_encoder" in components:
        if (
            checkpoint.text_encoder is None
            or checkpoint.text_config is None
            or checkpoint.tokenizer is None
        ):
            raise _lacks(checkpoint, "text encoder", "leave it out with --components dit,decoder")
        graphs["text_encoder"], extra, text_digests = export_text_encoder(
            checkpoint.text_encoder,
            checkpoint.text_config,
            folder,
            tokenizer=checkpoint.tokenizer,
            text_length=checkpoint.dit_config.text_length,
            recipe=text_encoder_recipe,
            cache=cache,
            progress=progress,
        )
        digests |= text_digests
    text_config = checkpoint.text_config if "text_encoder" in components else None
    manifest = OnnxManifest(
        tool_version=__version__,
        model=Model(
            name=checkpoint.model_name,
            recipe=recipe.name,
            activation=recipe.activation_name,
            activation_scales=recipe.activation_scales,
            shape=shape,
            dit=checkpoint.dit_config,
            decoder=checkpoint.decoder_config,
            text_encoder=text_config,
            default_sampler=sampler.name,
            own_sampler=None if sampler == SAMPLERS.get(sampler.name) else sampler,
            checkpoint=checkpoint.hub,
            adapters=checkpoint.adapters,
            notes=notes,
        ),
        graphs=graphs,
        tensor_digests=digests,
        extra_files=extra,
    )
    text = manifest.model_dump_json(indent=1) + "\n"
    (folder / ONNX_MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def _lacks(checkpoint: Checkpoint, part: str, fix: str) -> BadInput:
    return BadInput(f"checkpoint has no {part}", where=checkpoint.source, fix=fix)
