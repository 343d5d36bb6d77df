#!/usr/bin/env python3
"""Time the attention node's two launches, beside the published Python path where it is installed.

Prints measured milliseconds, achieved bandwidth of the prologue and TOPS of the attention; with
--json one object. Needs a CUDA GPU and the built plugin library. On a GPU without FP4 MMA only the
prologue is timed; on compute capability 9.0 --emulated times the emulated attention, whose speed
says nothing of another GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from cuda_timing import milliseconds

from fastwan.errors import EnvironmentLacks, FastWanError
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.quality.selftest.regions import node_inputs


def torch_prologue(
    inputs: tuple[torch.Tensor, ...], region: SageAttention3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bias, norm and RoPE as FastVideo's modules do them, q, k, v [B, H, L, D] at the end."""
    qkv, _, bias, q_norm, k_norm, cos, sin = inputs
    q, k, v = (qkv + bias)[:, : region.attributes.num_tokens].chunk(3, dim=-1)
    rows = []
    for x, weight in ((q, q_norm), (k, k_norm)):
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + region.attributes.eps)
        x = ((wide * scale).bfloat16() * weight).unflatten(-1, (region.attributes.num_heads, 128))
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        c, s = cos[: region.attributes.num_tokens, None], sin[: region.attributes.num_tokens, None]
        turned = torch.stack((even * c - odd * s, odd * c + even * s), -1)
        rows.append(turned.flatten(-2).bfloat16().transpose(1, 2).contiguous())
    heads = v.unflatten(-1, (region.attributes.num_heads, 128)).transpose(1, 2).contiguous()
    return rows[0], rows[1], heads


def published_attention() -> Callable[..., torch.Tensor] | None:
    """``attn_qat_infer.sageattn_blackwell`` where it and the GPU for it are there."""
    if importlib.util.find_spec("attn_qat_infer") is None:
        return None
    from attn_qat_infer import sageattn_blackwell

    call: Callable[..., torch.Tensor] = sageattn_blackwell
    return call


def measure(region: SageAttention3, repeats: int, emulated: bool) -> dict[str, Any]:
    """All figures of one region; times are measured, bytes and operations counted."""
    library = PluginLibrary(emulated=emulated)
    inputs = node_inputs(region, "cuda")
    shape = (region.batch, region.length, region.attributes.num_heads * 128)
    out = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    size = library.workspace_bytes(region)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    addresses = [x.data_ptr() for x in inputs]
    stream = torch.cuda.current_stream().cuda_stream
    launch = (region, addresses, [out.data_ptr()], workspace.data_ptr(), size, stream)

    moved = sum(region.prologue_traffic().values())
    source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_ms = milliseconds(lambda: target.copy_(source), repeats)
    prologue_ms = milliseconds(lambda: library.enqueue_prologue(*launch), repeats)
    torch_ms = milliseconds(lambda: torch_prologue(inputs, region), repeats)
    result: dict[str, Any] = {
        "kind": "measured",
        "fp4_arithmetic": "emulated" if emulated else "of the GPU",
        "gpu": torch.cuda.get_device_name(),
        "prologue_ms": prologue_ms,
        "prologue_bytes": moved,
        "prologue_gb_per_s": moved / prologue_ms / 1e6,
        "copy_of_as_many_bytes_ms": copy_ms,
        "torch_bias_norm_rope_transpose_ms": torch_ms,
    }
    try:
        library.check_device(torch.cuda.current_device())
    except EnvironmentLacks as error:
        return {**result, "attention": str(error)}
    operations = region.operations()
    attention = (region, [out.data_ptr()], workspace.data_ptr(), size, stream)
    attention_ms = milliseconds(lambda: library.enqueue_attention(*attention), repeats)
    node_ms = milliseconds(lambda: library.enqueue(*launch), repeats)
    result |= {
        "attention_ms": attention_ms,
        "attention_tops": operations / attention_ms / 1e9,
        "node_ms": node_ms,
    }
    published = published_attention()
    if published is None:
        return {**result, "published": "attn_qat_infer is not installed"}

    def published_node() -> torch.Tensor:
        return published(*torch_prologue(inputs, region)).transpose(1, 2).contiguous()

    published_ms = milliseconds(published_node, repeats)
    return {**result, "published_node_ms": published_ms, "speedup": published_ms / node_ms}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32760)
    parser.add_argument("--length", type=int, default=32768, help="rows, at least --tokens")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--emulated", action="store_true", help="with the emulated library")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    attributes = SageAttributes(options.heads, options.tokens)
    region = SageAttention3(options.batch, options.length, attributes)
    try:
        if not torch.cuda.is_available():
            raise EnvironmentLacks("no CUDA GPU", fix="run it on a machine that has one")
        result = measure(region, options.repeats, options.emulated)
    except FastWanError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:36} {value:,.4g}" if isinstance(value, float) else f"{name:36} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
