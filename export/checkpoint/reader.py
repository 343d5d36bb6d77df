"""Opening a checkpoint: a diffusers folder, a transformer's file or a Hugging Face id."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastwan.config import (
    COMPONENTS,
    MODELS,
    DecoderConfig,
    DiTConfig,
    TextEncoderConfig,
    VideoShape,
)
from fastwan.errors import BadInput
from fastwan.export.checkpoint import hub
from fastwan.export.checkpoint.components import (
    open_decoder,
    open_text_encoder,
    open_transformer,
    tell_beside,
    transformer_config,
)
from fastwan.export.checkpoint.foreign import refuse_file, refuse_folder
from fastwan.export.checkpoint.identity import (
    Claim,
    check_shape,
    origin_claims,
    overruled_names,
    own_claims,
    tell_model,
)
from fastwan.export.checkpoint.lora import Adapted, Lora
from fastwan.export.checkpoint.model_index import (
    MODEL_INDEX,
    SAMPLERS,
    ModelIndex,
    PipelineClass,
    read_model_index,
)
from fastwan.export.checkpoint.scheduler import Scheduler, read_scheduler
from fastwan.export.checkpoint.single_file import open_single_file
from fastwan.export.checkpoint.store import TensorStore
from fastwan.export.checkpoint.synthetic import PRESETS
from fastwan.export.checkpoint.tokenizer import read_tokenizer
from fastwan.export.onnx_io import TensorSource
from fastwan.hub.ids import require_repo_id
from fastwan.manifest_sources import Adapter, HubSource
from fastwan.tables import lookup


@dataclass(frozen=True)
class Checkpoint:
    """An opened and validated checkpoint; weights are read when they are asked for.

    Attributes:
        source: what the user gave: a folder, a file or ``owner/name``.
        root: the folder or file on disk.
        model_name: row of `fastwan.config.MODELS`.
        pipeline_class: of ``model_index.json``.
        scheduler: of ``scheduler_config.json``; None where there is none.
        dit_config: shape of the transformer, whatever the components.
        default_shape: what the checkpoint says, or 832x480x81.
        transformer: tensors under their diffusers names; empty unless ``dit`` was asked for.
        text_encoder: tensors under transformers' names, the embedding as ``shared.weight``; None
            unless asked for, as are `text_config` and `tokenizer`.
        decoder: the ``decoder.*`` tensors of TAEHV; None unless asked for, as is
            `decoder_config`.
        tokenizer: its files by name; ``tokenizer.json`` ends every prompt as its class does.
        adapters: LoRA files that `transformer` has merged.
        hub: where on the hub it was fetched; None for a folder.
        notes: what was assumed, and what of the checkpoint is not read; a line each, the same for
            the same checkpoint wherever it lies.
    """

    source: str
    root: Path
    model_name: str
    pipeline_class: PipelineClass
    scheduler: Scheduler | None
    dit_config: DiTConfig
    text_config: TextEncoderConfig | None
    decoder_config: DecoderConfig | None
    default_shape: VideoShape
    transformer: TensorSource
    text_encoder: TensorStore | None
    decoder: TensorStore | None
    tokenizer: Mapping[str, bytes] | None
    adapters: tuple[Adapter, ...] = ()
    hub: HubSource | None = None
    notes: tuple[str, ...] = ()

    def adapted(self, loras: Sequence[Lora]) -> Checkpoint:
        """The checkpoint with LoRA files merged into its transformer; itself without any."""
        if not loras:
            return self
        merged = Adapted(self.transformer, loras)
        return replace(self, transformer=merged, adapters=tuple(each.record for each in loras))

    @property
    def default_sampler(self) -> str:
        """Sampler of the pipeline class: ``unipc`` or ``dmd``."""
        return SAMPLERS[self.pipeline_class]


def open_checkpoint(
    source: str | Path,
    *,
    taehv: Path | None = None,
    components: Collection[str] = COMPONENTS,
    model: str | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """Open a checkpoint and check names, shapes and dtypes of all tensors of `components`.

    Values are checked (NaN, Inf) when they are read.

    Args:
        source: a diffusers folder, a transformer in one ``.safetensors`` file, or ``owner/name``
            or ``owner/name@revision`` on huggingface.co. What lies on disk comes first.
        taehv: TAEHV weights (``taew2_1.safetensors`` or ``.pth``); by default looked for in the
            checkpoint.
        components: of `fastwan.config.COMPONENTS`; the others need not be there.
        model: row of `fastwan.config.MODELS`; by default told from the checkpoint's names.
        revision: branch, tag or commit on huggingface.co, another way to write ``@revision``.

    Raises:
        BadInput: something is missing, damaged or not supported.
        EnvironmentLacks: the hub cannot be reached.
    """
    source = str(source)
    for name in components:
        if name not in COMPONENTS:
            raise BadInput(
                f"unknown component {name!r}",
                where="--components",
                fix="one of " + ", ".join(COMPONENTS),
            )
    if model is not None:
        lookup(MODELS, model)
    root, fetched = _find_root(source, components, revision)
    notes: list[str] = []
    if root.is_file():
        return _open_file(source, root, taehv, components, model, notes)
    index = read_model_index(root, components, notes)
    folder, dit_config = transformer_config(root, notes)
    own = own_claims(source, root)
    configs = (root / "transformer" / "config.json", folder / "config.json")
    origins = origin_claims(root, index.name_or_path, dict.fromkeys(configs))
    name = _name(own, origins, model, dit_config, notes)
    tell_beside(os.listdir(root) if fetched is None else fetched.files, notes)
    text_config, text_encoder, tokenizer = None, None, None
    if "text_encoder" in components:
        text_config, end_id, text_encoder = open_text_encoder(root, dit_config, notes)
        tokenizer = read_tokenizer(
            root / "tokenizer",
            index,
            text_length=dit_config.text_length,
            vocab_size=text_config.vocab_size,
            end_id=end_id,
            notes=notes,
        )
    decoder_config, decoder = None, None
    if "decoder" in components:
        decoder_config, decoder = open_decoder(root, taehv, notes)
    transformer = TensorStore({})
    if "dit" in components:
        transformer = open_transformer(folder, dit_config, notes)
    return Checkpoint(
        source=source,
        root=root,
        model_name=name,
        pipeline_class=index.pipeline_class,
        scheduler=read_scheduler(root, index, notes),
        dit_config=dit_config,
        text_config=text_config,
        decoder_config=decoder_config,
        default_shape=index.shape,
        transformer=transformer,
        text_encoder=text_encoder,
        decoder=decoder,
        tokenizer=tokenizer,
        hub=None if fetched is None else fetched.source,
        notes=tuple(notes),
    )


def _open_file(
    source: str,
    path: Path,
    taehv: Path | None,
    components: Collection[str],
    model: str | None,
    notes: list[str],
) -> Checkpoint:
    """A transformer in one file, which says nothing of the pipeline around it."""
    if "text_encoder" in components:
        raise BadInput(
            "one file holds a transformer alone, without text encoder and tokenizer",
            where=str(path),
            fix="pass --components dit, or dit,decoder with --taehv",
        )
    dit_config, transformer = open_single_file(path, notes)
    name = _name(own_claims(source, path), [], model, dit_config, notes)
    decoder_config, decoder = None, None
    if "decoder" in components:
        decoder_config, decoder = open_decoder(None, taehv, notes)
    index = ModelIndex()
    return Checkpoint(
        source=source,
        root=path,
        model_name=name,
        pipeline_class=index.pipeline_class,
        scheduler=None,
        dit_config=dit_config,
        text_config=None,
        decoder_config=decoder_config,
        default_shape=index.shape,
        transformer=transformer if "dit" in components else TensorStore({}),
        text_encoder=None,
        decoder=decoder,
        tokenizer=None,
        notes=tuple(notes),
    )


def _name(
    own: list[Claim],
    origins: list[Claim],
    model: str | None,
    config: DiTConfig,
    notes: list[str],
) -> str:
    """Row of `MODELS`: the user's choice, or what names and shape of the checkpoint tell."""
    shapes = [preset.dit for preset in PRESETS.values()]
    if model is None:
        name = tell_model(own, origins, notes)
        check_shape(config, name, shapes)
        return name
    notes += overruled_names(own, origins, model)
    try:
        check_shape(config, model, shapes)
    except BadInput as error:
        notes.append(f"built as {model}, though its {error.what}")
    return model


def _find_root(
    source: str, components: Collection[str], revision: str | None
) -> tuple[Path, hub.Fetched | None]:
    path = Path(source)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise BadInput(f"not a path: {error}", where=source[:120]) from None
    if is_folder and revision is not None:
        raise BadInput(
            f"a folder has no revision {revision[:120]!a}",
            where=source,
            fix="give its id on the hub, owner/name, or leave --revision out",
        )
    if is_folder:
        if not (path / MODEL_INDEX).is_file():
            raise refuse_folder(path)
        return path, None
    if path.is_file() and path.suffix == ".safetensors":
        return path, None
    if exists:
        raise refuse_file(path)
    require_repo_id(source)
    fetched = hub.fetch_checkpoint(source, components, revision)
    return fetched.folder, fetched
