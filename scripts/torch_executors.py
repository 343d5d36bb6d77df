"""Executors over torch modules on a CUDA GPU: the runtime's components without an engine.

The runtime's `DiT`, `Decoder` and `denoise` run over any executor. This one lets them run, and be
captured as a CUDA graph, on a GPU that no engine of ours is built for. The linears are the
checkpoint's bf16 weights and attention is exact, so it says nothing about FP4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fastwan.config import VideoShape
from fastwan.export.attentions import EXACT
from fastwan.export.checkpoint.reader import Checkpoint
from fastwan.export.decoder_onnx import load_decoder
from fastwan.export.models.layers import rope_tables
from fastwan.export.models.taehv import StreamingStep, TAEHVDecoder
from fastwan.export.recipes import BF16
from fastwan.export.weights import load_module
from fastwan.manifest import TensorSpec
from fastwan.runtime.model.decode import Decoder
from fastwan.runtime.model.dit import DiT

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class TorchExecutor:
    """A function of named CUDA tensors behind the runtime's executor protocol.

    Args:
        inputs: specs of the inputs.
        outputs: specs of the outputs, in the order in which `function` returns them.
        function: takes the inputs in order.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        function: Callable[..., Sequence[Tensor]],
    ) -> None:
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self._function = function

    def full(self, name: str, value: float = 0.0) -> Tensor:
        spec = self.inputs.get(name) or self.outputs[name]
        shape = [int(size) for size in spec.shape]
        return torch.full(shape, value, dtype=_DTYPES[spec.dtype], device="cuda")

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            made = self._function(*(inputs[name] for name in self.inputs))
        results = dict(zip(self.outputs, made, strict=True))
        for name, buffer in (outputs or {}).items():
            results[name] = buffer.copy_(results[name])
        return results


def torch_dit(checkpoint: Checkpoint, shape: VideoShape) -> DiT[Tensor]:
    """The runtime's DiT over a bf16 `WanDiT` on the GPU."""
    config = checkpoint.dit_config
    module = load_module(checkpoint.transformer, config, shape, BF16())
    module.set_quantizers(activations=False, attention=EXACT).cuda()
    cos, sin = (table.cuda() for table in rope_tables(shape, config.head_dim))
    names = [f"blocks.{i}.attn2.{part}" for i in range(config.num_layers) for part in "kv"]
    context = (1, config.text_length, config.width)
    pairs = [TensorSpec(name=name, dtype="bfloat16", shape=context) for name in names]

    def text_kv(embeds: Tensor) -> list[Tensor]:
        hidden = module.text_embed(embeds.to(torch.bfloat16))
        return [value for block in module.text_kv for value in block(hidden)]

    def velocity(latents: Tensor, temb: Tensor, timestep_proj: Tensor, *kv: Tensor) -> list[Tensor]:
        hidden = module.embed.tokens(latents.to(torch.bfloat16))
        for index, block in enumerate(module.blocks):
            hidden = block(hidden, timestep_proj, kv[2 * index], kv[2 * index + 1], cos, sin)
        return [module.head(hidden, temb)]

    text_shape = (1, config.text_length, config.text_dim)
    latents = shape.latents(config.in_channels)
    text_spec = TensorSpec(name="encoder_hidden_states", dtype="float32", shape=text_shape)
    time_spec = TensorSpec(name="timestep", dtype="float32", shape=(1,))
    tables = [
        TensorSpec(name="temb", dtype="bfloat16", shape=(1, config.width)),
        TensorSpec(name="timestep_proj", dtype="float32", shape=(1, 6, config.width)),
    ]
    latents_spec = TensorSpec(name="latents", dtype="float32", shape=latents)
    out = TensorSpec(name="velocity", dtype="bfloat16", shape=latents)
    return DiT(
        TorchExecutor([time_spec], tables, module.embed.time_tables),
        TorchExecutor([text_spec], pairs, text_kv),
        TorchExecutor([latents_spec, *tables, *pairs], [out], velocity),
    )


def torch_decoder_module(checkpoint: Checkpoint) -> TAEHVDecoder:
    """TAEHV's decoder in fp16 on the GPU."""
    assert checkpoint.decoder is not None
    assert checkpoint.decoder_config is not None
    return load_decoder(checkpoint.decoder, checkpoint.decoder_config, torch.float16).cuda()


def torch_decoder(module: TAEHVDecoder, shape: VideoShape) -> Decoder[Tensor]:
    """The runtime's streaming decoder over a TAEHV module on the GPU."""
    height, width = shape.latent_height, shape.latent_width
    memories = [
        TensorSpec(name=f"memory_{index}", dtype="float16", shape=size)
        for index, size in enumerate(module.memory_shapes(height, width))
    ]
    after = [spec.model_copy(update={"name": f"{spec.name}_out"}) for spec in memories]
    config = module.config
    latent_shape = (1, config.latent_channels, height, width)
    frame_shape = (config.frames_per_latent, shape.height, shape.width, config.image_channels)
    frames = TensorSpec(name="frames", dtype="uint8", shape=frame_shape)
    latent = TensorSpec(name="latent", dtype="float16", shape=latent_shape)
    step = StreamingStep(module).eval()
    return Decoder(TorchExecutor([latent, *memories], [frames, *after], step))


def combine(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Weighted sum on the GPU: accumulated in fp64 and rounded to fp32 once, as on the CPU."""
    total = sum(weight * tensor.double() for weight, tensor in terms)
    assert isinstance(total, Tensor)
    return total.float()
