"""``model_index.json``: which pipeline a folder is, and of what it is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastwan.config import VideoShape
from fastwan.errors import BadInput, listed
from fastwan.export.checkpoint.config_file import ConfigFile, shown

MODEL_INDEX = "model_index.json"
SHAPE_KEY = "_fastwan_shape"
"""Key of ``model_index.json`` under which a checkpoint brings its own default video shape."""

PipelineClass = Literal["WanPipeline", "WanDMDPipeline"]
SAMPLERS: dict[PipelineClass, str] = {"WanPipeline": "unipc", "WanDMDPipeline": "dmd"}
"""Sampler that a pipeline class of ``model_index.json`` runs."""

SECOND_TRANSFORMER = "transformer_2"
_WAN_2_2 = "this version plays one transformer; give a Wan 2.1 model such as FastWan-QAD-1.3B"
_READ = {"scheduler", "text_encoder", "tokenizer", "transformer", "vae"}
_CLASSES = {
    "dit": ("transformer", "WanTransformer3DModel"),
    "text_encoder": ("text_encoder", "UMT5EncoderModel"),
}


@dataclass(frozen=True)
class ModelIndex:
    """What ``model_index.json`` says.

    Attributes:
        pipeline_class: what diffusers or FastVideo would load.
        shape: the checkpoint's own default video shape, or 832x480x81.
        classes: by part, the class that it is loaded with; None where it has none.
        name_or_path: where it was loaded from before it was saved; empty where it does not say.
    """

    pipeline_class: PipelineClass = "WanPipeline"
    shape: VideoShape = field(default_factory=VideoShape)
    classes: Mapping[str, str | None] = field(default_factory=dict)
    name_or_path: str = ""


def read_model_index(root: Path, components: Collection[str], notes: list[str]) -> ModelIndex:
    """Read ``model_index.json`` in `root`.

    Args:
        components: those that are going to be read, of `fastwan.config.COMPONENTS`.
        notes: told of parts of the pipeline that are not read.

    Raises:
        BadInput: another pipeline than Wan 2.1 text-to-video, with a second transformer or with
            parts of other classes, or a video shape that is none.
    """
    file = ConfigFile(root / MODEL_INDEX)
    name = file.fields.get("_class_name")
    pipeline: PipelineClass | None = next((item for item in SAMPLERS if item == name), None)
    if pipeline is None:
        raise file.bad(
            f"pipeline {shown(name)} is not supported, expected " + " or ".join(SAMPLERS)
        )
    public = {part: value for part, value in file.fields.items() if not part.startswith("_")}
    classes = {
        part: _class(file, part, value) for part, value in public.items() if isinstance(value, list)
    }
    _check_wan_2_1(file, classes, root)
    for component in components:
        part, expected = _CLASSES.get(component, ("", ""))
        if classes.get(part, expected) not in (expected, None):
            raise file.bad(f"{part} is a {shown(classes[part])}, expected {expected}")
    unread = [
        part for part, value in public.items() if part not in _READ and classes.get(part, value)
    ]
    if unread:
        notes.append(f"{MODEL_INDEX} names {listed(unread)}, which this tool does not read")
    origin = file.fields.get("_name_or_path")
    return ModelIndex(
        pipeline_class=pipeline,
        shape=_shape(file, file.fields.get(SHAPE_KEY)),
        classes=classes,
        name_or_path=origin if isinstance(origin, str) else "",
    )


def _class(file: ConfigFile, part: str, value: list[Any]) -> str | None:
    """Class of a part, written as ``[library, class]``; ``[null, null]`` is a part left out."""
    if len(value) != 2 or not all(each is None or isinstance(each, str) for each in value):
        raise file.bad(f"{part} is {shown(value)}, expected [library, class]")
    name: str | None = value[1]
    return name


def _check_wan_2_1(file: ConfigFile, classes: Mapping[str, str | None], root: Path) -> None:
    fields = file.fields
    second = classes.get(SECOND_TRANSFORMER) or (root / SECOND_TRANSFORMER).is_dir()
    if second or fields.get("boundary_ratio") is not None:
        raise BadInput(
            "checkpoint has a second transformer for part of the steps, as Wan 2.2 has",
            where=f"{root}: {SECOND_TRANSFORMER if second else 'boundary_ratio'}",
            fix=_WAN_2_2,
        )
    if fields.get("expand_timesteps"):
        raise file.bad("expand_timesteps is set, as for Wan 2.2 TI2V", fix=_WAN_2_2)
    if classes.get("image_encoder"):
        raise file.bad(
            "pipeline has an image encoder, so it makes videos of images",
            fix="give a text-to-video model such as FastWan-QAD-1.3B",
        )


def _shape(file: ConfigFile, shape: Any) -> VideoShape:
    if shape is None:
        return VideoShape()
    if (
        not isinstance(shape, dict)
        or shape.keys() != {"height", "width", "num_frames"}
        or any(type(value) is not int for value in shape.values())
    ):
        raise file.bad(f"{SHAPE_KEY} must hold height, width and num_frames")
    try:
        return VideoShape(**shape)
    except BadInput as error:
        raise file.bad(f"{SHAPE_KEY}: {error.what}") from None
