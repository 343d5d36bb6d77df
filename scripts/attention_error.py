"""Error of each attention beside exact attention, on a CPU, over drawn activations.

    python scripts/attention_error.py --tokens 512 2048

q, k and v are normal numbers, the keys with an offset a channel of twice their spread, as the keys
of trained models have one; a larger weight of the norms makes the softmax more peaked.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from fastwan.export.attentions import EXACT
from fastwan.export.attentions.fp8 import FP8
from fastwan.export.attentions.native import SDPA
from fastwan.export.attentions.sage3 import FP4

HEADS, WIDTH = 2, 256
FORMS = (SDPA, FP8, FP4)


def inputs(tokens: int, norm: float) -> tuple[Tensor, ...]:
    """Inputs of the attention node, without padding."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(1, tokens, 3 * WIDTH, generator=generator)
    qkv[..., WIDTH : 2 * WIDTH] += 2 * torch.randn(WIDTH, generator=generator)
    weight = torch.full((WIDTH,), norm, dtype=torch.bfloat16)
    angle = 6.28 * torch.rand(tokens, 64, generator=generator)
    bias = torch.zeros(3 * WIDTH, dtype=torch.bfloat16)
    return qkv.bfloat16(), torch.ones(3), bias, weight, weight, angle.cos(), angle.sin()


def errors(tokens: int, norm: float) -> list[float]:
    """Relative L2 difference to exact attention, by form."""
    tensors = inputs(tokens, norm)
    settings = {
        "num_heads": HEADS, "num_tokens": tokens, "eps": 1e-6, "softmax_scale": 128**-0.5
    }  # fmt: skip
    exact = EXACT.compute(*tensors, **settings).float()
    made = [form.compute(*tensors, **settings).float() for form in FORMS]
    return [float((each - exact).norm() / exact.norm()) for each in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--norms", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    arguments = parser.parse_args()
    print("relative L2 difference to exact attention (emulated)")
    print("tokens  norm  " + "  ".join(f"{form.name:>8}" for form in FORMS))
    for tokens in arguments.tokens:
        for norm in arguments.norms:
            row = "  ".join(f"{error:8.4f}" for error in errors(tokens, norm))
            print(f"{tokens:6}  {norm:4}  {row}")


if __name__ == "__main__":
    main()
