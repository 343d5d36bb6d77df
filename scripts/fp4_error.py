"""FP4 against bf16, block by block, at full width: where an error starts and whether it grows.

    python scripts/fp4_error.py CHECKPOINT --latents LATENTS.safetensors --tokens 512
    python scripts/fp4_error.py CHECKPOINT --latents LATENTS.safetensors --lora FILE[:SCALE]

Two streams of hidden states run through the transformer, one with bf16 linears and exact
attention, one with NVFP4 linears and the FP4 attention. For each block: the difference of the
streams, relative to the change that the bf16 stream has seen since the first block, and the block's
own error, that of one block on the same input relative to what it adds. One block of weights is in
memory at a time. With LoRA files, both with them and without them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastwan.config import DiTConfig, VideoShape
from fastwan.errors import BadInput
from fastwan.export.attentions import EXACT
from fastwan.export.attentions.sage3 import FP4
from fastwan.export.checkpoint.lora import open_lora, parse_lora
from fastwan.export.checkpoint.reader import Checkpoint, open_checkpoint
from fastwan.export.models import wan
from fastwan.export.models.layers import rope_tables, timestep_frequencies
from fastwan.export.onnx_io import TensorSource
from fastwan.export.recipes import BF16 as PLAIN
from fastwan.export.recipes import NVFP4, Recipe
from fastwan.export.weight_groups import Group, WeightReader, weight_groups

TIMESTEP = 857.0
BF16 = torch.bfloat16


def read_latents(path: Path, tokens: int) -> tuple[Tensor, VideoShape]:
    """The first frames and the middle of a latent file [1, 16, T, H, W], about `tokens` large."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise BadInput("no file of real latents", where=str(path))
    latents = load_file(path)["latents"].to(BF16)
    frames = min(2, latents.shape[2])
    side = max(2, int((tokens / frames) ** 0.5) * 2)
    rows, columns = (min(side, size) // 2 * 2 for size in latents.shape[3:])
    top, left = (latents.shape[3] - rows) // 2, (latents.shape[4] - columns) // 2
    crop = latents[:, :, :frames, top : top + rows, left : left + columns]
    return crop, VideoShape(rows * 8, columns * 8, 4 * (frames - 1) + 1)


def _state(
    source: TensorSource, groups: list[Group], recipe: Recipe, prefix: str
) -> dict[str, Tensor]:
    reader = WeightReader(source, recipe, BF16, reference=True)
    state: dict[str, Tensor] = {}
    for group in groups:
        if group.name.startswith(prefix):
            state |= {n.removeprefix(prefix): t for n, t in group.load(reader).items()}
    return state


def _relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.float().norm() / reference.float().norm())


@torch.no_grad()
def block_errors(
    source: TensorSource, config: DiTConfig, latents: Tensor, shape: VideoShape
) -> list[tuple[float, float]]:
    """(error of the streams, error of the block alone) for each block."""
    groups = weight_groups(config)
    text = torch.randn(
        1, config.text_length, config.text_dim, generator=torch.Generator().manual_seed(0)
    ).to(BF16)
    embed = wan.Embed(config, shape, BF16)
    state = _state(source, groups, PLAIN(), "embed.")
    state["frequency"] = timestep_frequencies(config.freq_dim)
    embed.load_state_dict(state, assign=True)
    text_embed = wan.TextEmbed(config, BF16)
    text_embed.load_state_dict(_state(source, groups, PLAIN(), "text_embed."), assign=True)
    first, _, projected = embed(latents, torch.tensor([TIMESTEP]))
    context = text_embed(text)
    cos, sin = rope_tables(shape, config.head_dim)
    tokens = slice(0, shape.num_tokens)
    exact = quantised = first
    errors = []
    for index in range(config.num_layers):
        step = {}
        for name, recipe, form in (("bf16", PLAIN(), EXACT), ("nvfp4", NVFP4(), FP4)):
            keys = wan.TextKV(config, recipe, BF16)
            keys.load_state_dict(_state(source, groups, recipe, f"text_kv.{index}."), assign=True)
            block = wan.Block(config, shape.num_tokens, recipe, BF16)
            block.load_state_dict(_state(source, groups, recipe, f"blocks.{index}."), assign=True)
            block.attn1.form = form
            pair = keys(context)
            step[name] = lambda x, block=block, pair=pair: block(x, projected, *pair, cos, sin)
        following = step["bf16"](exact)
        alone = step["nvfp4"](exact) - following
        quantised = step["nvfp4"](quantised)
        own = _relative(alone[:, tokens], (following.float() - exact.float())[:, tokens])
        exact = following
        drift = _relative(
            (quantised - exact)[:, tokens], (exact.float() - first.float())[:, tokens]
        )
        errors.append((drift, own))
    return errors


def lora_errors(
    checkpoint: Checkpoint, files: Sequence[str], latents: Tensor, shape: VideoShape
) -> list[tuple[float, ...]]:
    """`block_errors` of a checkpoint, and behind them those with LoRA files merged.

    Args:
        files: as FILE[:scale], merged in this order; none adds nothing.

    Raises:
        BadInput: a file that is no LoRA of the model.
    """
    config = checkpoint.dit_config
    loras = [open_lora(path, scale, config) for path, scale in map(parse_lora, files)]
    plain = block_errors(checkpoint.transformer, config, latents, shape)
    if not loras:
        return [*plain]
    merged = block_errors(checkpoint.adapted(loras).transformer, config, latents, shape)
    return [(*before, *after) for before, after in zip(plain, merged, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("checkpoint")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:SCALE]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(options.checkpoint, components=("dit",))
    latents, shape = read_latents(options.latents, options.tokens)
    print(
        f"{shape.num_tokens} tokens of {options.latents.name}, timestep {TIMESTEP:.0f} (emulated)"
    )
    titles = ["error so far", "error of the block alone"]
    titles += [f"{title}, with LoRA" for title in titles if options.lora]
    print(f"| block | {' | '.join(titles)} |\n|---{'|---' * len(titles)}|")
    for index, row in enumerate(lora_errors(checkpoint, options.lora, latents, shape)):
        print(f"| {index} | {' | '.join(f'{error:.4f}' for error in row)} |")


if __name__ == "__main__":
    main()
