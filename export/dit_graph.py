"""The transformer's ONNX graph, as a function of the configuration alone.

Each stage of `fastwan.export.models.wan` is traced once under fake tensors, so that no weight
exists while the graph is made; the block is traced once and repeated. Initializers carry the names
under which `fastwan.export.weights` finds their values. Tracing all blocks at once gives the same
graph and takes ten times as long.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from fastwan.config import DiTConfig, VideoShape
from fastwan.export import ops, schemas
from fastwan.export.composer import Composer
from fastwan.export.linear_names import linear_node, name_linears
from fastwan.export.models import wan
from fastwan.export.recipes import Recipe
from fastwan.export.tracing import trace
from fastwan.manifest import Linear

LATENTS, TIMESTEP, TEXT = "latents", "timestep", "encoder_hidden_states"
TEMB, TIMESTEP_PROJ = "temb", "timestep_proj"
VELOCITY = "velocity"


class _Stages:
    """The traced stages of one configuration."""

    def __init__(self, config: DiTConfig, shape: VideoShape, recipe: Recipe) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        bf16, width, length = torch.bfloat16, config.width, shape.padded_tokens
        k = (1, config.text_length, width)
        v = (1, config.num_heads, config.text_length, config.head_dim)
        half = config.head_dim // 2
        table = ops.translations() | recipe.translations()
        with FakeTensorMode(allow_non_fake_inputs=True):
            tokens = torch.empty(1, length, width, dtype=bf16)
            context = torch.empty(1, config.text_length, width, dtype=bf16)
            temb = torch.empty(1, width, dtype=bf16)
            self.embed = trace(
                wan.Embed(config, shape, bf16).eval(),
                (torch.empty(shape.latents(config.in_channels), dtype=bf16), torch.empty(1)),
                name="embed",
                inputs=[LATENTS, TIMESTEP],
                outputs=["hidden", TEMB, TIMESTEP_PROJ],
            )
            self.text_embed = trace(
                wan.TextEmbed(config, bf16).eval(),
                (torch.empty(1, config.text_length, config.text_dim, dtype=bf16),),
                name="text_embed",
                inputs=[TEXT],
                outputs=["context"],
            )
            self.text_kv = trace(
                wan.TextKV(config, recipe, bf16).eval(),
                (context,),
                name="text_kv",
                inputs=["context"],
                outputs=["attn2.k", "attn2.v"],
                translations=table,
            )
            self.block = trace(
                wan.Block(config, shape.num_tokens, recipe, bf16).eval(),
                (
                    tokens,
                    torch.empty(1, 6, width),
                    torch.empty(k, dtype=bf16),
                    torch.empty(v, dtype=bf16),
                    torch.empty(length, half),
                    torch.empty(length, half),
                ),
                name="block",
                inputs=["hidden", "timestep_proj", "k", "v", "rope_cos", "rope_sin"],
                outputs=["hidden_out"],
                translations=table,
            )
            self.head = trace(
                wan.Head(config, shape, bf16).eval(),
                (tokens, temb),
                name="head",
                inputs=["hidden", "temb"],
                outputs=[VELOCITY],
            )


def build_dit_graph(config: DiTConfig, shape: VideoShape, recipe: Recipe) -> ir.Model:
    """The whole transformer without weights.

    Inputs ``latents`` [1, 16, T, H, W] bf16, ``timestep`` [1] fp32, ``encoder_hidden_states``
    [1, text_length, text_dim] bf16; output ``velocity`` like the latents. Targeted linears are what
    the recipe expands them to, self-attention is ``fastwan::SageAttention3``.
    """
    stages = _Stages(config, shape, recipe)
    compose = Composer("dit", {schemas.DOMAIN: schemas.VERSION})
    latents = compose.input(stages.embed, LATENTS)
    timestep = compose.input(stages.embed, TIMESTEP)
    text = compose.input(stages.text_embed, TEXT)
    half = (shape.padded_tokens, config.head_dim // 2)
    cos = compose.initializer("rope_cos", ir.DataType.FLOAT, half)
    sin = compose.initializer("rope_sin", ir.DataType.FLOAT, half)

    (context,) = compose.add(stages.text_embed, "text_embed.", {TEXT: text}, "text_embed.")
    keys_values = [
        compose.add(stages.text_kv, f"text_kv.{index}.", {"context": context}, "text_kv.")
        for index in range(config.num_layers)
    ]
    for index, pair in enumerate(keys_values):
        for value, name in zip(pair, "kv", strict=True):
            value.name = f"blocks.{index}.attn2.{name}"
    hidden, temb, timestep_proj = compose.add(
        stages.embed, "embed.", {LATENTS: latents, TIMESTEP: timestep}, "embed."
    )
    temb.name, timestep_proj.name = TEMB, TIMESTEP_PROJ
    for index, (k, v) in enumerate(keys_values):
        bindings = {"hidden": hidden, "timestep_proj": timestep_proj, "k": k, "v": v}
        bindings |= {"rope_cos": cos, "rope_sin": sin}
        (hidden,) = compose.add(stages.block, f"blocks.{index}.", bindings, "block.")
    (velocity,) = compose.add(stages.head, "head.", {"hidden": hidden, "temb": temb}, "head.")
    name_linears(compose.graph, recipe)
    return recipe.expand(compose.model({VELOCITY: velocity}))[0]


def targeted_linears(config: DiTConfig, recipe: Recipe) -> tuple[Linear, ...]:
    """The ten linears of each block (q, k and v of self-attention are one), in graph order."""
    linears = []
    for index in range(config.num_layers):
        block, text = f"blocks.{index}", f"text_kv.{index}"
        attention, cross = f"{block}.attn1", f"{block}.attn2"
        rows = [
            (f"{text}.to_k", (f"{cross}.to_k",)),
            (f"{text}.to_v", (f"{cross}.to_v",)),
            (f"{attention}.qkv", tuple(f"{attention}.to_{part}" for part in "qkv")),
            (f"{attention}.to_out", (f"{attention}.to_out.0",)),
            (f"{cross}.to_q", (f"{cross}.to_q",)),
            (f"{cross}.to_out", (f"{cross}.to_out.0",)),
            (f"{block}.ffn.fc1", (f"{block}.ffn.net.0.proj",)),
            (f"{block}.ffn.fc2", (f"{block}.ffn.net.2",)),
        ]
        for name, sources in rows:
            node = linear_node(name)
            linears.append(Linear(name=name, node=node, sources=sources, format=recipe.name))
    return tuple(linears)
