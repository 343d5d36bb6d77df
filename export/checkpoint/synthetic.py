"""`make-checkpoint`: synthetic weights in the layout and the formats of the published model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastwan.config import DecoderConfig, DiTConfig, TextEncoderConfig, VideoShape
from fastwan.errors import BadInput
from fastwan.export.checkpoint import synthetic_files as files
from fastwan.export.checkpoint.model_index import MODEL_INDEX
from fastwan.export.checkpoint.names import (
    Shapes,
    expected_decoder_tensors,
    expected_dit_tensors,
    expected_text_encoder_tensors,
)
from fastwan.export.checkpoint.safetensors_io import SafetensorsWriter, TensorSpec
from fastwan.export.checkpoint.synthetic_weights import (
    Fill,
    bf16_chunks,
    dit_fill,
    taehv_weights,
    text_encoder_fill,
)
from fastwan.outputs import OutputFolder
from fastwan.progress import Progress, Quiet, stage
from fastwan.schema import FigureReport, Measured

Size = Literal["tiny", "1.3b"]
_FillOf = Callable[[str, tuple[int, ...]], Fill]


@dataclass(frozen=True)
class Preset:
    """What a synthetic checkpoint of one size holds.

    Attributes:
        encoder_channels: width of the TAEHV encoder, which is in the file but never read.
        text_encoder: whether the text encoder is written when the caller leaves it open.
        shard_bytes: largest shard of the transformer and the text encoder.
    """

    dit: DiTConfig
    text: TextEncoderConfig
    decoder: DecoderConfig
    encoder_channels: int
    shape: VideoShape
    text_encoder: bool
    shard_bytes: int = 1_000_000_000


class CheckpointReport(FigureReport):
    """What ``make-checkpoint`` wrote."""

    kind: Literal["make-checkpoint"] = "make-checkpoint"
    schema_version: Literal[1] = 1
    path: str
    size: Size
    seed: int
    files: Measured[dict[str, int]]
    """Bytes by path in the checkpoint."""
    bytes: Measured[int]
    parameters: Measured[int]


PRESETS: dict[Size, Preset] = {
    # Heads keep their 128 channels; 180 tokens are no multiple of an attention tile.
    "tiny": Preset(
        dit=DiTConfig(num_layers=2, num_heads=2, ffn_dim=512, text_dim=64),
        text=TextEncoderConfig(
            vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
        ),
        decoder=DecoderConfig(channels=(32, 32, 16, 16)),
        encoder_channels=16,
        shape=VideoShape(height=96, width=160, num_frames=9),
        text_encoder=True,
    ),
    "1.3b": Preset(
        dit=DiTConfig(),
        text=TextEncoderConfig(),
        decoder=DecoderConfig(),
        encoder_channels=64,
        shape=VideoShape(),
        text_encoder=False,
    ),
}


def make_checkpoint(
    output: Path,
    *,
    size: Size,
    seed: int = 0,
    text_encoder: bool | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CheckpointReport:
    """Write a synthetic checkpoint, tensor by tensor, the same bytes for the same arguments.

    Args:
        output: folder to create; replaced if all of it is a checkpoint of this tool.
        size: row of `PRESETS`.
        seed: 0 to 2**64 - 1.
        text_encoder: whether to write the UMT5 encoder (11.4 GB at ``1.3b``); None leaves it to
            the preset.
        force: replace the folder whatever it holds.

    Raises:
        BadInput: unknown size, a seed out of range, or a folder that is not to be replaced.
    """
    preset = PRESETS.get(size)
    if preset is None:
        raise BadInput(f"unknown size {size!r}", where="--size", fix="one of " + ", ".join(PRESETS))
    if not 0 <= seed < 2**64:
        shown = "negative" if seed < 0 else "above 2**64 - 1"
        raise BadInput(f"seed is {shown}", where="--seed")
    with_text = preset.text_encoder if text_encoder is None else text_encoder
    progress = Quiet() if progress is None else progress

    parts: list[tuple[str, str, Shapes, _FillOf]] = [
        ("transformer", "diffusion_pytorch_model", expected_dit_tensors(preset.dit), dit_fill)
    ]
    if with_text:
        shapes = expected_text_encoder_tensors(preset.text)

        def fill(name: str, shape: tuple[int, ...]) -> Fill:
            return text_encoder_fill(name, shape, preset.text.d_kv)

        parts.append(("text_encoder", "model", shapes, fill))

    parameters = 0
    place = OutputFolder(output, "checkpoint", force, "OUTPUT")
    place.tell_what_is_deleted()
    with place.make() as folder:
        files.write_json(folder / MODEL_INDEX, files.model_index(preset.shape, with_text))
        transformer = files.transformer_config(preset.dit)
        files.write_json(folder / "transformer" / "config.json", transformer)
        scheduler = files.scheduler_config()
        files.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        for name, fields in files.tokenizer_files().items():
            files.write_json(folder / "tokenizer" / name, fields)
        if with_text:
            text_config = files.text_encoder_config(preset.text)
            files.write_json(folder / "text_encoder" / "config.json", text_config)
        for part, stem, shapes, fill_of in parts:
            total = 2 * sum(math.prod(shape) for shape in shapes.values())
            with stage(progress, f"write {part}", total, "bytes"):
                _write_bf16(folder / part, stem, shapes, fill_of, seed, preset, progress)
            parameters += total // 2
        taehv = {
            **_taehv_encoder_tensors(preset.encoder_channels),
            **expected_decoder_tensors(preset.decoder),
        }
        total = 2 * sum(math.prod(shape) for shape in taehv.values())
        with stage(progress, "write taew2_1", total, "bytes"):
            _write_taehv(folder / "taew2_1.safetensors", taehv, seed, progress)
        parameters += total // 2
        written = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    return CheckpointReport(
        path=str(output),
        size=size,
        seed=seed,
        files=written,
        bytes=sum(written.values()),
        parameters=parameters,
    )


def _write_bf16(
    folder: Path,
    stem: str,
    shapes: Shapes,
    fill_of: _FillOf,
    seed: int,
    preset: Preset,
    progress: Progress,
) -> None:
    folder.mkdir(exist_ok=True)
    shards = list(_shards(shapes, preset.shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"{stem}{suffix}.safetensors"
        weight_map.update(dict.fromkeys(names, file))
        specs = {name: TensorSpec(torch.bfloat16, shapes[name]) for name in names}
        with SafetensorsWriter(folder / file, specs) as writer:
            for name in writer.names:
                shape = shapes[name]
                chunks = bf16_chunks(seed, f"{folder.name}.{name}", shape, fill_of(name, shape))
                writer.write_bytes(name, (chunk.data for chunk in chunks))
                progress.advance(specs[name].nbytes, name)
    if len(shards) > 1:
        total = 2 * sum(math.prod(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        files.write_json(folder / f"{stem}.safetensors.index.json", index)


def _shards(shapes: Shapes, limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if names and filled + size > limit:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def _write_taehv(path: Path, shapes: Shapes, seed: int, progress: Progress) -> None:
    specs = {name: TensorSpec(torch.float16, shape) for name, shape in shapes.items()}
    with SafetensorsWriter(path, specs) as writer:
        for name in writer.names:
            writer.write_bytes(name, [taehv_weights(seed, name, shapes[name]).data])
            progress.advance(specs[name].nbytes, name)


def _taehv_encoder_tensors(channels: int) -> Shapes:
    """The ``encoder.*`` tensors of a Wan 2.1 TAEHV file, which are published beside the decoder.

    Convolution 0 and ReLU 1, then three levels of time pooling, strided convolution and three
    memory blocks, and convolution 17 to the latents.
    """
    shapes: Shapes = {"encoder.0.weight": (channels, 3, 3, 3), "encoder.0.bias": (channels,)}
    for level, pooled in enumerate((2, 2, 1)):
        first = 2 + 5 * level
        shapes[f"encoder.{first}.conv.weight"] = (channels, channels * pooled, 1, 1)
        shapes[f"encoder.{first + 1}.weight"] = (channels, channels, 3, 3)
        for block in range(first + 2, first + 5):
            for layer, inputs in ((0, 2 * channels), (2, channels), (4, channels)):
                shapes[f"encoder.{block}.conv.{layer}.weight"] = (channels, inputs, 3, 3)
                shapes[f"encoder.{block}.conv.{layer}.bias"] = (channels,)
    shapes["encoder.17.weight"] = (16, channels, 3, 3)
    shapes["encoder.17.bias"] = (16,)
    return shapes
