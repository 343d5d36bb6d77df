"""Bytes and operations of the attention node, counted; derived in docs/attention-cost.md.

A tensor counts once for each launch that reads or writes it in device memory. What a launch reads
again is taken to come from the L2 cache where it fits there: K and V of one head are 4.7 MB at
32,760 tokens.
"""

from __future__ import annotations

from fastwan.plugins.region import SageRegion

HEAD_DIM = 128
TILE = 128
_BF16, _FP32 = 2, 4
_PACKED = HEAD_DIM // 2 + HEAD_DIM // 16
"""Bytes of a packed row of 128 values: 64 of codes and 8 of scales."""


def _rows(region: SageRegion) -> tuple[int, int]:
    """Rows of 128 values of one of q, k, v: true ones, and padded to whole tiles."""
    padded = -(-region.num_tokens // TILE) * TILE
    heads = region.batch * region.num_heads
    return heads * region.num_tokens, heads * padded


def prologue_traffic(region: SageRegion) -> dict[str, int]:
    """Bytes that the prologue's one launch moves, by tensor."""
    rows, padded = _rows(region)
    channels = region.num_heads * HEAD_DIM
    behind = region.batch * (region.length - region.num_tokens)
    return {
        "read qkv": 3 * rows * HEAD_DIM * _BF16,
        "read RoPE tables": 2 * region.num_tokens * (HEAD_DIM // 2) * _FP32,
        "read bias, norms, scales": 5 * channels * _BF16 + 3 * _FP32,
        "write packed q, k, v": 3 * padded * _PACKED,
        "write zero term": padded * _FP32,
        "write rows behind the tokens": behind * channels * _BF16,
    }


def attention_traffic(region: SageRegion) -> dict[str, int]:
    """Bytes that the attention's launch moves, by tensor."""
    rows, padded = _rows(region)
    return {
        "read packed q, k, v": 3 * padded * _PACKED,
        "read zero term": padded * _FP32,
        "write output": rows * HEAD_DIM * _BF16,
    }


def published_traffic(region: SageRegion) -> dict[str, int]:
    """Bytes that the published Python path moves around the same attention kernel.

    ``attn_qat_infer`` of fastvideo-kernel 0.3.5 behind FastVideo's backend, with norm and RoPE as
    one pass each; without the attention's own operands and output.
    """
    rows, padded = _rows(region)
    tensor, wide = rows * HEAD_DIM * _BF16, padded * HEAD_DIM * _BF16
    unpadded = rows == padded
    delta_s = padded * (padded // (region.batch * region.num_heads * TILE)) * _FP32
    return {
        "norm of q, k": 4 * tensor,
        "RoPE of q, k": 4 * tensor,
        "transpose q, k, v": 6 * tensor,
        "pad q, k, v": 0 if unpadded else 3 * (tensor + wide),
        "quantise q, k, v": 3 * (wide + padded * _PACKED),
        "write delta_s": delta_s,
        "read delta_s": delta_s,
        "slice output": 0 if unpadded else 2 * tensor,
        "transpose output": 2 * tensor,
    }


def attention_operations(region: SageRegion) -> int:
    """Multiplications and additions of QK^T and PV over the true tokens."""
    heads = region.batch * region.num_heads
    return 4 * heads * region.num_tokens**2 * HEAD_DIM
