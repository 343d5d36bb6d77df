"""Export of the TAEHV decoder as a streaming step: ``decoder.onnx`` and ``decoder.data``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from fastwan.config import DecoderConfig, VideoShape
from fastwan.export.cache import ExportCache, content_key
from fastwan.export.models.taehv import StreamingStep, TAEHVDecoder
from fastwan.export.onnx_io import TensorSource, save_model
from fastwan.export.tracing import trace
from fastwan.manifest import Graph, TensorSpec
from fastwan.progress import Progress, Quiet, stage
from fastwan.tables import lookup

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_ONNX_NAMES = {"fp16": "float16", "fp32": "float32"}
_GRAPH, _DATA = "decoder.onnx", "decoder.data"
_QUIET = Quiet()


def load_decoder(
    source: TensorSource, config: DecoderConfig, dtype: torch.dtype = torch.float32
) -> TAEHVDecoder:
    """The decoder with the weights of a TAEHV file; its other tensors (the encoder) are ignored.

    Args:
        source: tensors ``decoder.*``; shapes as `config` says (the reader has checked them).
        config: shape of the decoder.
        dtype: number type of weights and computation.
    """
    with torch.device("meta"):
        decoder = TAEHVDecoder(config)
    tensors = {name: source.read(name).to(dtype) for name in decoder.state_dict()}
    decoder.load_state_dict(tensors, assign=True)
    return decoder.eval().requires_grad_(False)


def export_decoder(
    source: TensorSource,
    config: DecoderConfig,
    shape: VideoShape,
    folder: Path,
    *,
    dtype: str = "fp16",
    cache: ExportCache | None = None,
    progress: Progress = _QUIET,
) -> Graph:
    """Write the streaming decoder for one video size.

    Inputs ``latent`` [1, C, h, w] and ``memory_<i>`` [1, C_i, h_i, w_i]; outputs ``frames``
    uint8 [frames_per_latent, H, W, 3] and ``memory_<i>_out``. The memories of the first step are
    zeros, and the first `DecoderConfig.frames_to_trim` frames of a video are dropped.

    Args:
        source: tensors of the TAEHV file.
        config: shape of the decoder.
        shape: size of the video.
        folder: existing folder for ``decoder.onnx`` and ``decoder.data``.
        dtype: ``fp16`` (as published) or ``fp32``.
        cache: where a finished decoder of these weights is taken from and left.
        progress: told when the stage begins and ends.

    Raises:
        BadInput: an unknown `dtype`.
    """
    kind = lookup(DTYPES, dtype)
    with stage(progress, "export decoder"):
        decoder = load_decoder(source, config, kind)
        height, width = shape.latent_height, shape.latent_width
        latent = torch.zeros(1, config.latent_channels, height, width, dtype=kind)
        memories = decoder.zero_memories(height, width)
        names = [f"memory_{index}" for index in range(len(memories))]
        facts = {"config": asdict(config), "shape": asdict(shape), "dtype": dtype}
        key = content_key("decoder", facts, decoder.state_dict().items())
        if cache is None or cache.copy(key, folder) is None:
            model = trace(
                StreamingStep(decoder),
                (latent, *memories),
                name="decoder",
                inputs=["latent", *names],
                outputs=["frames", *(f"{name}_out" for name in names)],
            )
            save_model(model, folder / _GRAPH, data=folder / _DATA)
            if cache is not None:
                cache.put(key, {name: folder / name for name in (_GRAPH, _DATA)}, {})

    number = _ONNX_NAMES[dtype]
    frames = (config.frames_per_latent, shape.height, shape.width, config.image_channels)
    shapes = [tuple(memory.shape) for memory in memories]
    return Graph(
        file=_GRAPH,
        data=(_DATA,),
        cpu_file=_GRAPH,  # ONNX Runtime computes fp16 itself
        inputs=(
            TensorSpec(name="latent", dtype=number, shape=tuple(latent.shape)),
            *(
                TensorSpec(name=name, dtype=number, shape=size)
                for name, size in zip(names, shapes, strict=True)
            ),
        ),
        outputs=(
            TensorSpec(name="frames", dtype="uint8", shape=frames),
            *(
                TensorSpec(name=f"{name}_out", dtype=number, shape=size)
                for name, size in zip(names, shapes, strict=True)
            ),
        ),
    )
