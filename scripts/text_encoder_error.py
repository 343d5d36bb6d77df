"""The text encoder in NVFP4 against bf16, block by block: what `--text-encoder-recipe nvfp4` costs.

    python scripts/text_encoder_error.py CHECKPOINT --tokens 32

Three streams run through the encoder on a prompt of random tokens: fp32, bf16 as the published run
computes, and NVFP4 linears (six of a block's seven) with bf16 between them. For each block: the
difference of bf16 and of NVFP4 from fp32, relative to it in the L2 norm; the last row is behind the
final norm, what the transformer gets. One block of weights is in memory at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastwan.config import TextEncoderConfig
from fastwan.errors import BadInput
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.models import umt5
from fastwan.export.models.layers import Linear
from fastwan.export.recipes import BF16, NVFP4, Recipe

Streams = dict[str, tuple[Recipe, torch.dtype]]
STREAMS: Streams = {
    "fp32": (BF16(), torch.float32),
    "bf16": (BF16(), torch.bfloat16),
    "nvfp4": (NVFP4(), torch.bfloat16),
}


def _load(module: nn.Module, source: Any, prefix: str) -> nn.Module:
    """Give a module the checkpoint's tensors, as the recipe of each linear stores them."""
    state: dict[str, Tensor] = {}
    wanted = module.state_dict()
    for linear, part in module.named_modules():
        if isinstance(part, Linear):
            dtype = torch.bfloat16 if part.recipe.quantised else wanted[f"{linear}.weight"].dtype
            weight = source.read(f"{prefix}{linear}.weight").bfloat16()
            stored = part.recipe.stored(weight, dtype, reference=True)
            state |= {f"{linear}.{name}": tensor for name, tensor in stored.items()}
    for name in wanted.keys() - state.keys():
        state[name] = source.read(prefix + name).bfloat16().to(wanted[name].dtype)
    module.load_state_dict(state, assign=True)
    return module.eval()


def _relative(got: Tensor, exact: Tensor) -> float:
    return float((got.float() - exact).norm() / exact.norm())


@torch.no_grad()
def block_errors(
    source: Any, config: TextEncoderConfig, tokens: int
) -> Iterator[tuple[str, float, float]]:
    """(where, error of bf16, error of NVFP4), behind each block and behind the final norm."""
    ids = torch.randint(config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    rows = [source.read_rows(umt5.EMBEDDING, i, i + 1) for i in ids.tolist()]
    embeddings = torch.cat(rows).bfloat16().unsqueeze(0)
    buckets = umt5.relative_buckets(config, tokens)
    hidden = {name: embeddings.to(dtype) for name, (_, dtype) in STREAMS.items()}

    def errors(where: str) -> tuple[str, float, float]:
        bf16, nvfp4 = (_relative(hidden[name], hidden["fp32"]) for name in ("bf16", "nvfp4"))
        return where, bf16, nvfp4

    for index in range(config.num_layers):
        for name, (recipe, dtype) in STREAMS.items():
            block = _load(umt5.Block(config, recipe, dtype), source, f"encoder.block.{index}.")
            hidden[name] = block(hidden[name], buckets)
        yield errors(f"block {index}")
    for name, (_, dtype) in STREAMS.items():
        hidden[name] = _load(umt5.FinalNorm(config, dtype), source, "encoder.")(hidden[name])
    yield errors("final norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)  # OpenMP collapses beside other work
    checkpoint = open_checkpoint(options.checkpoint, components=("text_encoder",))
    if checkpoint.text_encoder is None or checkpoint.text_config is None:
        raise BadInput("checkpoint has no text encoder", where=options.checkpoint)
    print(f"{options.tokens} random tokens (emulated)")
    print("| behind | bf16 | NVFP4 |\n|---|---|---|")
    for where, bf16, nvfp4 in block_errors(
        checkpoint.text_encoder, checkpoint.text_config, options.tokens
    ):
        print(f"| {where} | {bf16:.4f} | {nvfp4:.4f} |", flush=True)


if __name__ == "__main__":
    main()
