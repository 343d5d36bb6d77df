"""`decoder` and `text_encoder`: the other two graphs on ONNX Runtime against their modules."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.export.decoder_onnx import DTYPES, export_decoder
from fastwan.export.models.umt5 import UMT5Encoder
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.quality.verify.executor import MemoryExecutor
from fastwan.quality.verify.graphs import ROUNDING_MARGIN, random_inputs, relative_difference
from fastwan.quality.verify.modules import (
    decoder_module,
    streaming_step,
    text_encoder_module,
)
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.steps import latents_of, torch_frames
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.cpu.components import CpuComponents
from fastwan.runtime.cpu.executor import OnnxRuntimeExecutor, cpu_executor
from fastwan.runtime.model.decode import Decoder
from fastwan.runtime.model.dit import DiT
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.text import TextEncoder, pad_rows
from fastwan.runtime.text import open_text_encoder

PROMPT = "A red fox runs through fresh snow at sunrise, slow motion, film grain"
_LATENTS = 3


class Runtime:
    """The runtime's own components at the shape of the checks."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._components = CpuComponents(subject.bundle)

    def dit(self, lowered: Callable[[], DiT[Array]]) -> DiT[Array]:
        """The shipped CPU reference, or `lowered` where the bundle has none."""
        subject = self._subject
        return self._components.dit if subject.check_shape == subject.shape else lowered()

    def embeds(self) -> list[Array]:
        """Embeddings of `PROMPT`, see `embeds_of`."""
        return self.embeds_of(PROMPT)

    def embeds_of(self, prompt: str, seed: int = 0) -> list[Array]:
        """Embeddings of a prompt and, where the sampler is guided, of the empty text.

        Args:
            seed: draws random ones where the bundle has no text encoder.
        """
        subject = self._subject
        count = schedule_of(subject.manifest.sampler_spec()).prompts
        if "text_encoder" not in subject.graphs:
            return [random_inputs(subject, seed + index)[1] for index in range(count)]
        return [self._encoder.encode(each).astype(np.float32) for each in (prompt, "")[:count]]

    @cached_property
    def _encoder(self) -> TextEncoder:
        return text_encoder(self._subject)

    @contextmanager
    def decoder(self) -> Iterator[Decoder[Array] | None]:
        """The decoder at the shape of the checks, None where the bundle has none."""
        subject = self._subject
        if "decoder" not in subject.graphs:
            yield None
        elif subject.check_shape == subject.shape:
            yield self._components.decoder
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield _small_decoder(subject, Path(folder))


def text_encoder(subject: Subject) -> TextEncoder:
    """The runtime's text encoder; it does not need the transformer."""
    executor = cpu_executor(subject.bundle, "text_encoder")
    return open_text_encoder(subject.bundle, executor, subject.dit_config.text_length)


class _StoredDecoder:
    """The decoder's weights as the exporter reads a checkpoint."""

    def __init__(self, subject: Subject) -> None:
        self._state = decoder_module(subject, _decoder_dtype(subject)).state_dict()

    def names(self) -> Sequence[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._state[name]
        return tensor


def _small_decoder(subject: Subject, folder: Path) -> Decoder[Array]:
    dtype = _decoder_dtype(subject)
    name = next(key for key, value in DTYPES.items() if value == dtype)
    record = export_decoder(
        _StoredDecoder(subject), subject.decoder_config, subject.check_shape, folder, dtype=name
    )
    return Decoder(OnnxRuntimeExecutor(folder / record.file))


def _decoder_dtype(subject: Subject) -> torch.dtype:
    name = subject.graph("decoder").inputs[0].dtype
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
        raise BadInput(f"decoder of dtype {name}", where="manifest.json")
    return dtype


def check_decoder(subject: Subject) -> Check:
    """The shipped decoder, a few latents through, against TAEHV in torch: levels of 0 to 255."""
    decoder = CpuComponents(subject.bundle).decoder
    # At the bundle's own size whatever it is, but of a large video the first latent only.
    count = min(_LATENTS, subject.shape.latent_frames)
    count = count if subject.check_shape == subject.shape else 1
    shape = VideoShape(subject.shape.height, subject.shape.width, 4 * (count - 1) + 1)
    latents = latents_of(shape, subject.decoder_config.latent_channels)
    got = np.stack([frame.copy() for frame in decoder.frames(latents)])
    module = decoder_module(subject, _decoder_dtype(subject))
    memories = module.zero_memories(shape.latent_height, shape.latent_width)
    trim = subject.decoder_config.frames_to_trim
    expected = torch_frames(streaming_step(module), memories, latents, trim)
    same = got.shape == expected.shape and expected.size
    levels = np.abs(got.astype(np.int16) - expected.astype(np.int16)).max() if same else np.inf
    note = f"{len(got)} frames of {shape.width}x{shape.height}"
    return Check(
        name="decoder",
        metric="largest difference in levels to torch",
        value=float(levels),
        limit=1.0,
        note=note,
    )


@torch.no_grad()
def check_text_encoder(subject: Subject) -> Check:
    """The prompt at its true length against UMT5 in torch, activation quantisers off.

    The limit is the distance between the module in bf16 and in fp32, as of `graph_bf16`.
    """
    from safetensors.torch import load_file

    from fastwan.runtime.model.text import EMBEDDING

    encoder = text_encoder(subject)
    tokens = encoder.token_ids(PROMPT)
    table = load_file(subject.bundle.file(EMBEDDING))["weight"]
    ids = torch.tensor([tokens])

    def encode(dtype: torch.dtype) -> Array:
        module: UMT5Encoder = text_encoder_module(subject, table, dtype)
        return np.asarray(module(ids).float().numpy())

    expected = encode(torch.bfloat16)
    rounding = relative_difference(encode(torch.float32), expected)
    got = _encoded(subject, encoder, table[ids].float().numpy())
    padded = pad_rows(expected, subject.dit_config.text_length)
    value = relative_difference(padded, got)
    note = f"{len(tokens)} tokens, zero rows up to {padded.shape[1]}"
    metric = "relative L2 difference to torch in bf16"
    return Check(
        name="text_encoder", metric=metric, value=value, limit=ROUNDING_MARGIN * rounding, note=note
    )


def _encoded(subject: Subject, encoder: TextEncoder, embeddings: Array) -> Array:
    """Padded embeddings of `PROMPT` by ONNX Runtime."""
    if not subject.text_recipe.quantised:
        return encoder.encode(PROMPT).astype(np.float32)
    model = subject.load(subject.graph("text_encoder").file)
    lowered, _ = lower_for_onnxruntime(model, quantize_activations=False)
    executor = MemoryExecutor(lowered, subject.data_folder)
    hidden = executor.run({"embeddings": embeddings})["hidden_states"]
    return pad_rows(hidden.astype(np.float32), subject.dit_config.text_length)
