"""Opening a checkpoint: a local diffusers folder or a Hugging Face id."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from fastwan.export.checkpoint.configs import (
    SAMPLERS,
    PipelineClass,
    infer_decoder_config,
    read_dit_config,
    read_model_index,
    read_text_encoder_config,
)
from fastwan.export.checkpoint.hub import MODEL_INDEX
from fastwan.export.checkpoint.names import (
    canonical_dit_name,
    check_tensors,
    expected_decoder_tensors,
    expected_dit_tensors,
    expected_text_encoder_tensors,
)
from fastwan.export.checkpoint.store import TensorStore, open_folder, open_store
from fastwan.hub.ids import is_repo_id
from fastwan.manifest import HubSource
from fastwan.tables import lookup

DEFAULT_MODEL = "FastWan-QAD-1.3B"
# Published siblings whose recipes are no rows of MODELS: taking them for another model would
# build engines for weights that were tuned otherwise.
_SIBLINGS = ("FastWan-QAD-1.3B-SA2", "FastWan-QAD-FP8-1.3B")
_DECODER_FILES = tuple(
    f"{folder}taew2_1{suffix}"
    for folder in ("", "taehv/", "vae/")
    for suffix in (".safetensors", ".pth")
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened and validated checkpoint; weights are read when they are asked for.

    Attributes:
        source: what the user gave, a folder or ``owner/name``.
        root: the folder on disk.
        model_name: row of `fastwan.config.MODELS`.
        pipeline_class: of ``model_index.json``.
        dit_config: shape of the transformer, whatever the components.
        default_shape: what the checkpoint says, or 832x480x81.
        transformer: tensors under their diffusers names; empty unless ``dit`` was asked for.
        text_encoder: tensors under transformers' names, the embedding as ``shared.weight``; None
            unless asked for, as are `text_config` and `tokenizer_dir`.
        decoder: the ``decoder.*`` tensors of TAEHV; None unless asked for, as is
            `decoder_config`.
        tokenizer_dir: folder with ``tokenizer.json``.
        hub: where on the hub it was fetched; None for a folder.
    """

    source: str
    root: Path
    model_name: str
    pipeline_class: PipelineClass
    dit_config: DiTConfig
    text_config: TextEncoderConfig | None
    decoder_config: DecoderConfig | None
    default_shape: VideoShape
    transformer: TensorStore
    text_encoder: TensorStore | None
    decoder: TensorStore | None
    tokenizer_dir: Path | None
    hub: HubSource | None = None

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
        source: a diffusers folder, or ``owner/name`` or ``owner/name@revision`` on
            huggingface.co. A folder of that name comes first.
        taehv: TAEHV weights (``taew2_1.safetensors`` or ``.pth``); by default looked for in the
            checkpoint.
        components: of `fastwan.config.COMPONENTS`; the others need not be there.
        model: row of `fastwan.config.MODELS`; by default told from the checkpoint's name.
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
    root, origin = _find_root(source, components, revision)
    pipeline, shape, index = read_model_index(root / MODEL_INDEX)
    dit_config = read_dit_config(root / "transformer" / "config.json")
    text_config, text_encoder, tokenizer = None, None, None
    if "text_encoder" in components:
        text_config, text_encoder = _open_text_encoder(root, dit_config)
        tokenizer = _find_tokenizer(root)
    decoder_config, decoder = None, None
    if "decoder" in components:
        decoder_config, decoder = _open_decoder(root, taehv)
    return Checkpoint(
        source=source,
        root=root,
        model_name=model or _model_name(source, root, index),
        pipeline_class=pipeline,
        dit_config=dit_config,
        text_config=text_config,
        decoder_config=decoder_config,
        default_shape=shape,
        transformer=(
            _open_transformer(root, dit_config) if "dit" in components else TensorStore({})
        ),
        text_encoder=text_encoder,
        decoder=decoder,
        tokenizer_dir=tokenizer,
        hub=origin,
    )


def _find_root(
    source: str, components: Collection[str], revision: str | None
) -> tuple[Path, HubSource | None]:
    path = Path(source)
    try:
        is_folder = path.is_dir()
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
            raise BadInput(
                f"folder holds no {MODEL_INDEX}",
                where=source,
                fix="give the top folder of a diffusers checkpoint",
            )
        return path, None
    if path.exists():
        raise BadInput("checkpoint is a file", where=source, fix="give its folder")
    if not is_repo_id(source):
        raise BadInput(
            "checkpoint does not exist",
            where=source,
            fix="give a folder or a Hugging Face id such as FastVideo/FastWan-QAD-1.3B",
        )
    return hub.fetch_checkpoint(source, components, revision)


def _model_name(source: str, root: Path, index: dict[str, Any]) -> str:
    # In the hub's cache the model's name is two folders up: models--owner--name/snapshots/hash.
    told = [source, str(root.absolute().name), str(index.get("_name_or_path", ""))]
    if root.absolute().parent.name == "snapshots":
        told.append(root.absolute().parent.parent.name)
    names = [text.rstrip("/").split("/")[-1].lower() for text in told]
    known = sorted((*MODELS, *_SIBLINGS), key=len, reverse=True)
    found = next((name for name in known if any(name.lower() in text for text in names)), None)
    if found is None:
        return DEFAULT_MODEL
    if found not in MODELS:
        raise BadInput(
            f"model {found} is not supported", where=source, fix="use " + " or ".join(MODELS)
        )
    return found


def _open_transformer(root: Path, config: DiTConfig) -> TensorStore:
    generator = root / hub.GENERATOR / "diffusion_pytorch_model.safetensors"
    if generator.is_file():
        store = open_store(generator)
    else:
        store = open_folder(root / "transformer", "diffusion_pytorch_model")
    store = store.renamed(canonical_dit_name)
    check_tensors(store, expected_dit_tensors(config), "transformer")
    return store


def _open_text_encoder(root: Path, dit: DiTConfig) -> tuple[TextEncoderConfig, TensorStore]:
    folder = root / "text_encoder"
    if not folder.is_dir():
        raise BadInput(
            "checkpoint has no text_encoder",
            where=str(root),
            fix="leave it out with --components dit,decoder",
        )
    config = read_text_encoder_config(folder / "config.json")
    if config.d_model != dit.text_dim:
        raise BadInput(
            f"text encoder gives {config.d_model} channels, the transformer takes {dit.text_dim}",
            where=str(folder / "config.json"),
        )
    store = open_folder(folder, "model")
    shared, tied = "shared.weight", "encoder.embed_tokens.weight"
    if tied in store:
        # transformers ties the two: one of them is enough, and both hold the same values.
        if shared in store:
            if store.shape(tied) != store.shape(shared):
                raise BadInput(f"shape differs from {shared}", where=store.where(tied))
            store = store.without(lambda name: name == tied)
        else:
            store = store.renamed(lambda name: shared if name == tied else name)
    check_tensors(store, expected_text_encoder_tensors(config), "text encoder")
    return config, store


def _find_tokenizer(root: Path) -> Path:
    folder = root / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(
            "tokenizer.json is missing",
            where=str(folder),
            fix="a fast tokenizer is needed; transformers' save_pretrained writes one",
        )
    return folder


def _open_decoder(root: Path, taehv: Path | None) -> tuple[DecoderConfig, TensorStore]:
    path = taehv
    if path is None:
        path = next((root / name for name in _DECODER_FILES if (root / name).is_file()), None)
    if path is None:
        raise BadInput(
            "checkpoint has no TAEHV decoder, taew2_1.safetensors",
            where=str(root),
            fix="pass --taehv FILE (weights: github.com/madebyollin/taehv)",
        )
    # The same file holds the encoder, which making a video does not need.
    store = open_store(path).without(lambda name: name.startswith("encoder."))
    if not len(store):
        raise BadInput("file holds no decoder, all tensors are missing", where=str(path))
    config = infer_decoder_config(store)
    check_tensors(store, expected_decoder_tensors(config), "TAEHV decoder")
    return config, store
