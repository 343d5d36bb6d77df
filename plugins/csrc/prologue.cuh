// From the raw qkv GEMM output to the packed operands of the attention, in one launch.
//
// Two roles share the grid. A warp of the q/k role owns one token: it keeps the token's row in
// registers between the sum of squares and the normalisation, so qkv is read once. A block of the
// v role owns 64 tokens of one head and turns them over in shared memory, because V is quantised
// along the tokens. The torch definition is `prologue` and `pack_operands` in reference.py; every
// rounding below is one of its roundings.
#pragma once

#include "fp4.cuh"
#include "layout.h"

namespace fastwan {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHeadDim = FASTWAN_HEAD_DIM;
constexpr int kLaneChannels = kHeadDim / kWarp;  // a lane holds 4 neighbouring channels of a head
constexpr int kValueTokens = 64;                 // tokens of one block of the v role

struct PrologueArguments {
  SageBuffers buffers;
  int batch;
  int length;
  int num_tokens;
  int padded_tokens;
  int num_heads;
  float eps;
  int value_blocks;  // blocks of the v role come first
};

struct Four {
  float x[kLaneChannels];
};

__device__ __forceinline__ Four unpack(uint2 packed) {
  return {{bf16_to_float(packed.x & 0xFFFFu), bf16_to_float(packed.x >> 16),
           bf16_to_float(packed.y & 0xFFFFu), bf16_to_float(packed.y >> 16)}};
}

__device__ __forceinline__ uint2 pack(Four const& value) {
  return make_uint2(pack_bf16(value.x[0], value.x[1]), pack_bf16(value.x[2], value.x[3]));
}

__device__ __forceinline__ Four round_bf16(Four const& value) { return unpack(pack(value)); }

__device__ __forceinline__ Four load_four(uint16_t const* row) {
  return unpack(*reinterpret_cast<uint2 const*>(row));
}

// bf16(bf16(x * scale) + bias): the GEMM's output and the linear's bias.
__device__ __forceinline__ Four scale_and_bias(Four x, float scale, Four const& bias) {
  for (int i = 0; i < kLaneChannels; ++i) x.x[i] = __fmul_rn(x.x[i], scale);
  x = round_bf16(x);
  for (int i = 0; i < kLaneChannels; ++i) x.x[i] = __fadd_rn(x.x[i], bias.x[i]);
  return round_bf16(x);
}

// Byte of scale (row, group) within a head with `groups` scales a row.
__device__ __forceinline__ int64_t scale_offset(int row, int group, int groups) {
  return int64_t{row / 64} * 64 * groups + (group / 4) * 256 + (row % 16) * 16 +
         ((row / 16) % 4) * 4 + group % 4;
}

// Row at which token t of K is stored: bits 4..3 and 2..1 of its place within 32 change places.
__device__ __forceinline__ int stored_key(int token) {
  return (token & ~31) | (token & 1) | (((token >> 3) & 3) << 1) | (((token >> 1) & 3) << 3);
}

// Where rows of codes and their scales go.
struct Rows {
  uint8_t* codes;
  uint8_t* scales;
  int64_t pitch;  // bytes from row to row of codes
};

__device__ __forceinline__ Rows query_rows(SageBuffers const& b) {
  return {b.q, b.q_scale, kPieceBytes};
}

__device__ __forceinline__ Rows key_rows(SageBuffers const& b) {
  return {b.k, b.k_scale, kPiecePitch};
}

// Four channels of a row quantised in groups of 16 (four lanes), and stored.
__device__ __forceinline__ void store_row(Four const& value, int64_t head_row, int row, int lane,
                                          Rows const& rows) {
  float amax = fmaxf(fmaxf(fabsf(value.x[0]), fabsf(value.x[1])),
                     fmaxf(fabsf(value.x[2]), fabsf(value.x[3])));
  amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, 1));
  amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, 2));
  BlockScale const scale = block_scale(amax);
  uint32_t const packed =
      to_e2m1x4(__fmul_rn(value.x[0], scale.inverse), __fmul_rn(value.x[1], scale.inverse),
                __fmul_rn(value.x[2], scale.inverse), __fmul_rn(value.x[3], scale.inverse));
  auto* out = reinterpret_cast<uint16_t*>(rows.codes + (head_row + row) * rows.pitch);
  out[lane] = static_cast<uint16_t>(packed);
  if (lane % 4 == 0) {
    constexpr int kGroups = kHeadDim / 16;
    rows.scales[head_row * kGroups + scale_offset(row, lane / 4, kGroups)] =
        static_cast<uint8_t>(scale.code);
  }
}

// q or k of one token: scale, bias, RMS norm across heads, RoPE, quantise, store at `row`.
template <int kMaxHeads>
__device__ __forceinline__ void prepare_row(PrologueArguments const& p, uint16_t const* x,
                                            float scale, uint16_t const* bias,
                                            uint16_t const* weight, float2 cosine, float2 sine,
                                            int batch, int row, int lane, Rows const& rows) {
  uint2 held[kMaxHeads];
  float sum[kLaneChannels] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int head = 0; head < kMaxHeads; ++head) {
    if (head < p.num_heads) held[head] = reinterpret_cast<uint2 const*>(x)[head * kWarp + lane];
  }
#pragma unroll
  for (int head = 0; head < kMaxHeads; ++head) {
    if (head < p.num_heads) {
      int const channel = head * kHeadDim + lane * kLaneChannels;
      Four const value = scale_and_bias(unpack(held[head]), scale, load_four(bias + channel));
      held[head] = pack(value);
      for (int i = 0; i < kLaneChannels; ++i) {
        sum[i] = __fadd_rn(sum[i], __fmul_rn(value.x[i], value.x[i]));
      }
    }
  }
  // The order of these sums is part of the definition.
  float total = __fadd_rn(__fadd_rn(sum[0], sum[1]), __fadd_rn(sum[2], sum[3]));
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    total = __fadd_rn(total, __shfl_xor_sync(0xFFFFFFFFu, total, distance));
  }
  float const mean = __fdiv_rn(total, static_cast<float>(p.num_heads * kHeadDim));
  float const inverse = __frsqrt_rn(__fadd_rn(mean, p.eps));
#pragma unroll
  for (int head = 0; head < kMaxHeads; ++head) {
    if (head < p.num_heads) {
      Four value = unpack(held[head]);
      Four const gain = load_four(weight + head * kHeadDim + lane * kLaneChannels);
      for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fmul_rn(value.x[i], inverse);
      value = round_bf16(value);
      for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fmul_rn(value.x[i], gain.x[i]);
      value = round_bf16(value);
      Four const turned = round_bf16(Four{
          {__fsub_rn(__fmul_rn(value.x[0], cosine.x), __fmul_rn(value.x[1], sine.x)),
           __fadd_rn(__fmul_rn(value.x[0], sine.x), __fmul_rn(value.x[1], cosine.x)),
           __fsub_rn(__fmul_rn(value.x[2], cosine.y), __fmul_rn(value.x[3], sine.y)),
           __fadd_rn(__fmul_rn(value.x[2], sine.y), __fmul_rn(value.x[3], cosine.y))}});
      int64_t const head_row = (int64_t{batch} * p.num_heads + head) * p.padded_tokens;
      store_row(turned, head_row, row, lane, rows);
    }
  }
}

// Rows behind the last token: zero operands, and zero output where the caller has such rows.
__device__ __forceinline__ void clear_row(PrologueArguments const& p, int batch, int token,
                                          int lane) {
  SageBuffers const& b = p.buffers;
  Four const zero{};
  if (token < p.padded_tokens) {
    for (int head = 0; head < p.num_heads; ++head) {
      int64_t const head_row = (int64_t{batch} * p.num_heads + head) * p.padded_tokens;
      store_row(zero, head_row, token, lane, query_rows(b));
      store_row(zero, head_row, stored_key(token), lane, key_rows(b));
    }
  }
  if (token < p.length) {
    auto* out = reinterpret_cast<uint2*>(
        b.out + (int64_t{batch} * p.length + token) * p.num_heads * kHeadDim);
    for (int head = 0; head < p.num_heads; ++head) out[head * kWarp + lane] = make_uint2(0u, 0u);
  }
}

template <int kMaxHeads>
__device__ __forceinline__ void query_key_role(PrologueArguments const& p, int block) {
  SageBuffers const& b = p.buffers;
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  int const rows = p.length > p.padded_tokens ? p.length : p.padded_tokens;
  int const index = block * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (index >= p.batch * rows) return;
  int const batch = index / rows;
  int const token = index % rows;
  if (token >= p.num_tokens) {
    clear_row(p, batch, token, lane);
    return;
  }
  int const channels = p.num_heads * kHeadDim;
  uint16_t const* x = b.qkv + (int64_t{batch} * p.length + token) * 3 * channels;
  int64_t const turn = int64_t{token} * (kHeadDim / 4) + lane;
  float2 const cosine = reinterpret_cast<float2 const*>(b.rope_cos)[turn];
  float2 const sine = reinterpret_cast<float2 const*>(b.rope_sin)[turn];
  prepare_row<kMaxHeads>(p, x, b.qkv_scale[0], b.qkv_bias, b.q_norm, cosine, sine, batch, token,
                         lane, query_rows(b));
  prepare_row<kMaxHeads>(p, x + channels, b.qkv_scale[1], b.qkv_bias + channels, b.k_norm, cosine,
                         sine, batch, stored_key(token), lane, key_rows(b));
}

__device__ __forceinline__ void value_role(PrologueArguments const& p, int block,
                                           uint16_t* tile) {
  SageBuffers const& b = p.buffers;
  int const thread = static_cast<int>(threadIdx.x);
  int const tiles = p.padded_tokens / kValueTokens;
  int const first = block % tiles * kValueTokens;
  int const head = block / tiles % p.num_heads;
  int const batch = block / tiles / p.num_heads;
  int const channels = p.num_heads * kHeadDim;
  {
    int const channel = thread % kWarp * kLaneChannels;
    int const column = 2 * channels + head * kHeadDim + channel;
    float const scale = b.qkv_scale[2];
    Four const bias = load_four(b.qkv_bias + column);
#pragma unroll
    for (int i = 0; i < kValueTokens / kWarps; ++i) {
      int const row = i * kWarps + thread / kWarp;
      uint2 value = make_uint2(0u, 0u);
      if (first + row < p.num_tokens) {
        int64_t const token = int64_t{batch} * p.length + first + row;
        value = pack(scale_and_bias(load_four(b.qkv + token * 3 * channels + column), scale, bias));
      }
      *reinterpret_cast<uint2*>(tile + row * kHeadDim + channel) = value;
    }
  }
  __syncthreads();
  // A thread has one channel of 32 tokens: two groups, 16 bytes.
  int const channel = thread % kHeadDim;
  int const half = thread / kHeadDim;
  uint32_t words[4];
  uint32_t codes = 0u;
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    float value[16];
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      int const row = half * 32 + group * 16 + i;
      value[i] = bf16_to_float(tile[row * kHeadDim + channel]);
      amax = fmaxf(amax, fabsf(value[i]));
    }
    BlockScale const scale = block_scale(amax);
    codes |= scale.code << (8 * group);
#pragma unroll
    for (int i = 0; i < 16; ++i) value[i] = __fmul_rn(value[i], scale.inverse);
    words[2 * group] = to_e2m1x4(value[0], value[1], value[2], value[3]) |
                       (to_e2m1x4(value[4], value[5], value[6], value[7]) << 16);
    words[2 * group + 1] = to_e2m1x4(value[8], value[9], value[10], value[11]) |
                           (to_e2m1x4(value[12], value[13], value[14], value[15]) << 16);
  }
  int const groups = p.padded_tokens / 16;
  int64_t const channel_row = (int64_t{batch} * p.num_heads + head) * kHeadDim;
  uint8_t* out = b.v + (channel_row + channel) * (p.padded_tokens / FASTWAN_TILE) * kPiecePitch +
                 first / FASTWAN_TILE * kPiecePitch + first % FASTWAN_TILE / 2 + half * 16;
  *reinterpret_cast<uint4*>(out) = make_uint4(words[0], words[1], words[2], words[3]);
  uint8_t* scales =
      b.v_scale + channel_row * groups + scale_offset(channel, first / 16 + half * 2, groups);
  *reinterpret_cast<uint16_t*>(scales) = static_cast<uint16_t>(codes);
  if (thread < kValueTokens) {
    b.delta_s[(int64_t{batch} * p.num_heads + head) * p.padded_tokens + first + thread] = 0.0f;
  }
}

inline PrologueArguments prologue_arguments(fastwan_region_desc const& desc,
                                            fastwan_sage_layout const& layout,
                                            SageBuffers const& buffers) {
  int const padded = static_cast<int>(layout.padded_tokens);
  return {buffers, desc.batch, desc.length, desc.num_tokens, padded, desc.num_heads, desc.eps,
          desc.batch * desc.num_heads * (padded / kValueTokens)};
}

inline int prologue_blocks(PrologueArguments const& p) {
  int const rows = p.length > p.padded_tokens ? p.length : p.padded_tokens;
  return p.value_blocks + (p.batch * rows + kWarps - 1) / kWarps;
}

template <int kMaxHeads>
__global__ void __launch_bounds__(kThreads) prologue_kernel(PrologueArguments const p) {
  alignas(16) __shared__ uint16_t tile[kValueTokens * kHeadDim];
  int const block = static_cast<int>(blockIdx.x);
  if (block < p.value_blocks) {
    value_role(p, block, tile);
  } else {
    query_key_role<kMaxHeads>(p, block - p.value_blocks);
  }
}

}  // namespace fastwan
