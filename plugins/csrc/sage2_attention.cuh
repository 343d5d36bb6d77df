// SageAttention2++: int8 queries and keys, e4m3 probabilities and values, over tiles of 64 keys.
//
// A block has a multiprocessor to itself. It owns 128 queries of a head, each of its 8 warps 16 of
// them, which stay in registers. The logits of the next keys are multiplied before the softmax of
// these, which so does not wait for MMAs.
#pragma once

#include "sage2_ring.cuh"

namespace fastwan::sage2 {

constexpr int kBlockQueries = kWarpQueries * kAttentionWarps;
constexpr int kQueryTileBytes = kBlockQueries * kRowBytes;
static_assert(kBlockQueries == kQueryTile, "a block's queries are one tile of the workspace");
constexpr int shared_bytes(bool wide) { return kQueryTileBytes + ring_bytes(wide); }
static_assert(shared_bytes(false) <= 99 * 1024, "compute capability 8.9 and 12.x");
static_assert(shared_bytes(true) <= 227 * 1024, "compute capability 9.0");

struct AttentionArguments {
  uint8_t const* q;
  float const* q_scale;
  uint8_t const* k;
  float const* k_scale;
  uint8_t const* v;
  float const* v_scale;
  uint16_t* out;
  int length;
  int num_tokens;
  int padded_tokens;
  int num_heads;
  int query_groups;
  int key_groups;
  int query_tiles;
  float scale;  // of the logits, times log2(e)
};

// Where a block works.
struct Place {
  int tile, head, batch;
};

__device__ __forceinline__ Place place(AttentionArguments const& p, int block) {
  return {block % p.query_tiles, block / p.query_tiles % p.num_heads,
          block / p.query_tiles / p.num_heads};
}

// The block's index, read anew: that is cheaper than to keep what follows from it.
__device__ __forceinline__ int block_index() {
#ifdef FASTWAN_HOST_EMULATION
  return static_cast<int>(blockIdx.x);
#else
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
#endif
}

// bf16(O / l * v_scale) of the rows that are tokens.
__device__ __forceinline__ void store(AttentionArguments const& p, State const& state, int lane) {
  auto const [tile, head, batch] = place(p, block_index());
  int const first = tile * kBlockQueries + static_cast<int>(threadIdx.x) / 32 * kWarpQueries;
  float const* scales = p.v_scale + (int64_t{batch} * p.num_heads + head) * FASTWAN_HEAD_DIM;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 2));
    float const inverse = fast_reciprocal(sum);
    int const row = first + half * 8 + lane / 4;
    if (row >= p.num_tokens) continue;
    uint16_t* out =
        p.out + ((int64_t{batch} * p.length + row) * p.num_heads + head) * FASTWAN_HEAD_DIM;
#pragma unroll
    for (int n = 0; n < kValueColumns; ++n) {
      int const channel = n * 8 + lane % 4 * 2;
      float2 const scale = *reinterpret_cast<float2 const*>(scales + channel);
      auto const& o = state.out[n];
      *reinterpret_cast<uint32_t*>(out + channel) =
          pack_bf16(__fmul_rn(__fmul_rn(o[2 * half], inverse), scale.x),
                    __fmul_rn(__fmul_rn(o[2 * half + 1], inverse), scale.y));
    }
  }
}

__device__ __forceinline__ void attention_block(AttentionArguments const& p, uint8_t* memory) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  int const warp = static_cast<int>(threadIdx.x) / 32;
  Place const at = place(p, static_cast<int>(blockIdx.x));
  // Counted in pieces of 16 bytes, places in the operands fit 32 bits and keep few registers.
  int const head_row = (at.batch * p.num_heads + at.head) * p.padded_tokens;
  uint32_t key_piece = static_cast<uint32_t>(head_row) * (kRowBytes / 16) + threadIdx.x;
  uint32_t key_scale = static_cast<uint32_t>(head_row / kKeyTile * p.key_groups +
                                             (lane % 4 & (p.key_groups - 1)));
  int const tiles = (p.num_tokens + kKeyTile - 1) / kKeyTile;

  Shared const queries = shared_address(memory);
  Ring const ring{queries + kQueryTileBytes};
  ring.initialize();
  auto const query_piece =
      key_piece + static_cast<uint32_t>(at.tile * kBlockQueries) * (kRowBytes / 16);
  Ring::copy_tile<kQueryTileBytes>(queries + threadIdx.x * 16, p.q + uint64_t{query_piece} * 16);
  auto const fetch = [&](int index) {
    if (index >= tiles) return;
    uint32_t const value_piece = kWide ? 2u * key_piece - threadIdx.x : key_piece;
    ring.fetch(index, p.k + uint64_t{key_piece} * 16, p.v + uint64_t{value_piece} * 16);
    key_piece += kKeyTileBytes / 16;
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch(i);

  int64_t const query_block =
      (head_row + at.tile * kBlockQueries + warp * kWarpQueries) / kQueryRows;
  float const q_factor =
      p.q_scale[query_block * p.query_groups + (lane / 4 & (p.query_groups - 1))];
  State state{};
  state.maximum[0] = state.maximum[1] = kLowest;
  Logits s;
  ring.wait(0);
  load_queries(state, queries + warp * kWarpQueries * kRowBytes, lane);
  logits(s, state, ring.keys(0), lane);
  auto const factor = [&] {
    float const scale = p.k_scale[key_scale];
    key_scale += static_cast<uint32_t>(p.key_groups);
    return __fmul_rn(p.scale, __fmul_rn(q_factor, scale));
  };
#pragma unroll 1
  for (int index = 0; index < tiles - 1; ++index) {
    float const scale = factor();
    ring.wait(index + 1);
    Logits next;
    logits(next, state, ring.keys(index + 1), lane);
    fetch(index + kAhead);  // here: the MMAs are issued before its wait, so ahead of the softmax
    attend(state, s, ring.values(index), scale, lane);
    ring.release(index, lane);
#pragma unroll
    for (int i = 0; i < 4 * kKeyColumns; ++i) s[i / 4][i % 4] = next[i / 4][i % 4];
  }
  mask(s, p.num_tokens - (tiles - 1) * kKeyTile, lane);
  attend(state, s, ring.values(tiles - 1), factor(), lane);
  store(p, state, lane);
}

#ifndef FASTWAN_HOST_EMULATION
__global__ void __launch_bounds__(kAttentionThreads, 1) attention_kernel(AttentionArguments const p) {
  extern __shared__ __align__(128) uint8_t memory[];
  attention_block(p, memory);
}
#endif

inline AttentionArguments attention_arguments(fastwan_sage2_desc const& desc,
                                              fastwan_sage2_layout const& layout,
                                              Buffers const& b) {
  int const padded = static_cast<int>(layout.padded_tokens);
  return {b.q,
          b.q_scale,
          b.k,
          b.k_scale,
          b.v,
          b.v_scale,
          b.out,
          desc.length,
          desc.num_tokens,
          padded,
          desc.num_heads,
          query_groups(desc),
          key_groups(desc),
          padded / kBlockQueries,
          desc.softmax_scale * 1.44269504088896340736f};
}

inline int64_t attention_blocks(fastwan_sage2_desc const& desc, AttentionArguments const& p) {
  return int64_t{desc.batch} * p.num_heads * p.query_tiles;
}

}  // namespace fastwan::sage2
