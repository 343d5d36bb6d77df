// Third launch of SageAttention2++: k minus its mean and q to int8, v to e4m3.
#pragma once

#include "sage2_statistics.cuh"
#include "sage2_tensor_core.cuh"

namespace fastwan::sage2 {

constexpr float kSmallest = 1e-7f;
constexpr int kWarpTokens = kQueryTile / kWarps;  // of a block that quantises q or k

// Scale of rows with the largest magnitude `amax`, and what a value is divided or multiplied by.
struct RowScale {
  float scale, inverse;
};

template <bool kPerThread>
__device__ __forceinline__ RowScale row_scale(float amax) {
  if (kPerThread) return {__fadd_rn(__fdiv_rn(amax, 127.0f), kSmallest), 0.0f};
  float const limited = fmaxf(amax, kSmallest);
  return {__fdiv_rn(limited, 127.0f), __fdiv_rn(127.0f, limited)};
}

// int8 code, in the low byte; a magnitude is at most 127 but for a rounding. Per thread half away from
// zero, per warp to nearest even.
template <bool kPerThread>
__device__ __forceinline__ uint32_t to_int8(float value, RowScale const& scale) {
  if (kPerThread) {
    float const quotient = __fdiv_rn(value, scale.scale);
    float const moved = __fadd_rn(quotient, quotient >= 0.0f ? 0.5f : -0.5f);
    return static_cast<uint32_t>(static_cast<int>(moved)) & 0xFFu;
  }
  return static_cast<uint32_t>(__float2int_rn(__fmul_rn(value, scale.inverse))) & 0xFFu;
}

// 128 tokens of q (part 0) or k (part 1) of one head. `shared` has 8 floats for each warp.
//
// A warp has 16 tokens, which take part in `kGroups` scales; the groups of two warps (q) or four (k)
// share a scale each.
template <bool kPerThread, bool kRowScaled, int kPart>
__device__ __forceinline__ void row_role(PrologueArguments const& p, int block, float* shared) {
  constexpr int kGroups = kPerThread ? (kPart == 0 ? 8 : 4) : 1;
  constexpr int kSharing = (kPart == 0 ? kQueryRows : kKeyTile) / kWarpTokens;
  Buffers const& b = p.buffers;
  int const lane = lane_of_thread(), warp = warp_of_thread();
  int const tiles = p.padded_tokens / kQueryTile;
  int const tile = block % tiles, head = block / tiles % p.num_heads;
  int const batch = block / tiles / p.num_heads;
  int const channel = head * kHeadDim + lane * kLaneChannels;
  int const first = tile * kQueryTile + warp * kWarpTokens;
  Channel const about = channel_of(p, kPart, channel);
  Four mean{};
  if (kPart == 1) {
    float const* from = b.k_mean + int64_t{batch} * p.num_heads * kHeadDim + channel;
    for (int i = 0; i < kLaneChannels; ++i) mean.x[i] = from[i];
  }
  float const* inverse =
      b.inverse_norm + (int64_t{kPart} * p.batch + batch) * p.padded_tokens + first;
  // k minus its mean: rounded to bf16 where a scale is a thread's, in fp32 where it is a warp's.
  auto const centred = [&](uint2 held) {
    Four value = unpack(held);
    if (kPart == 1) {
      for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fsub_rn(value.x[i], mean.x[i]);
      if (kPerThread) value = round_bf16(value);
    }
    return value;
  };
  uint2 held[kWarpTokens];
  float amax[kGroups] = {};
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    if (first + i < p.num_tokens) {
      held[i] = pack(
          prepared<kRowScaled>(p, batch, first + i, kPart, channel, about, inverse[i], lane));
      Four const value = centred(held[i]);
      float& group = amax[(kPart == 0 ? i % 8 : i % 8 / 2) % kGroups];
      group = fmaxf(group, fmaxf(fmaxf(fabsf(value.x[0]), fabsf(value.x[1])),
                                 fmaxf(fabsf(value.x[2]), fabsf(value.x[3]))));
    }
  }
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      amax[group] = fmaxf(amax[group], __shfl_xor_sync(0xFFFFFFFFu, amax[group], distance));
    }
    if (lane == 0) shared[warp * 8 + group] = amax[group];
  }
  __syncthreads();
  int64_t const head_row = (int64_t{batch} * p.num_heads + head) * p.padded_tokens;
  int const leader = warp / kSharing * kSharing;
  RowScale scales[kGroups];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    float largest = 0.0f;
    for (int i = 0; i < kSharing; ++i) {
      largest = fmaxf(largest, shared[(leader + i) * 8 + group]);
    }
    scales[group] = row_scale<kPerThread>(largest);
    if (warp == leader && lane == 0) {
      int64_t const index = (head_row + first) / (kSharing * kWarpTokens) * kGroups + group;
      (kPart == 0 ? b.q_scale : b.k_scale)[index] = scales[group].scale;
    }
  }
  uint8_t* out = (kPart == 0 ? b.q : b.k) + head_row * kRowBytes;
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    uint32_t codes = 0u;
    if (first + i < p.num_tokens) {
      Four const value = centred(held[i]);
      RowScale const& scale = scales[(kPart == 0 ? i % 8 : i % 8 / 2) % kGroups];
#pragma unroll
      for (int j = 0; j < kLaneChannels; ++j) {
        codes |= to_int8<kPerThread>(value.x[j], scale) << (8 * j);
      }
    }
    // Rows of 128 bytes one after the other: a tile of 64 keys or of 128 queries begins at its rows.
    int const row = first + i;
    *reinterpret_cast<uint32_t*>(out + swizzled(row, lane / 4) + lane % 4 * 4) = codes;
  }
}

// e4m3 code of a value with a sign.
__device__ __forceinline__ uint32_t signed_e4m3(float value) {
  return to_e4m3(fabsf(value)) | ((__float_as_uint(value) >> 24) & 0x80u);
}

// 256 times the value of a code with a sign.
__device__ __forceinline__ float widened(uint32_t code) {
  float const value = __fmul_rn(from_e4m3(code & 0x7Fu), 256.0f);
  return (code & 0x80u) != 0u ? -value : value;
}

// Token in 16 at each place of an e4m3 operand: 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15.
__device__ __forceinline__ int permuted_token(int place) {
  return (place & 1) | ((place >> 1 & 1) << 3) | ((place >> 2) << 1);
}

// 64 tokens of v of one head, turned over in shared memory.
template <bool kRowScaled>
__device__ __forceinline__ void value_role(PrologueArguments const& p, int block, uint16_t* tile) {
  Buffers const& b = p.buffers;
  int const thread = static_cast<int>(threadIdx.x);
  int const tiles = p.padded_tokens / kKeyTile;
  int const index = block % tiles, head = block / tiles % p.num_heads;
  int const batch = block / tiles / p.num_heads;
  {
    int const lane = lane_of_thread();
    int const column = head * kHeadDim + lane * kLaneChannels;
    float const scale = b.qkv_scale[2];
    Four const bias = load_four(b.qkv_bias + 2 * p.num_heads * kHeadDim + column);
#pragma unroll
    for (int i = 0; i < kKeyTile / kWarps; ++i) {
      int const row = i * kWarps + warp_of_thread();
      int const token = index * kKeyTile + row;
      uint2 value = make_uint2(0u, 0u);
      if (token < p.num_tokens) {
        value = pack(value_of<kRowScaled>(p, batch, token, column, scale, bias));
      }
      *reinterpret_cast<uint2*>(tile + row * kHeadDim + lane * kLaneChannels) = value;
    }
  }
  __syncthreads();
  // A thread has one channel of 32 tokens.
  int const channel = thread % kHeadDim, half = thread / kHeadDim;
  float const factor = b.v_factor[(int64_t{batch} * p.num_heads + head) * kHeadDim + channel];
  int64_t const head_row = (int64_t{batch} * p.num_heads + head) * p.padded_tokens;
  int const bytes = p.wide ? 2 : 1;
  uint8_t* out = b.v + (head_row + int64_t{index} * kKeyTile) * kHeadDim * bytes;
#pragma unroll
  for (int group = 0; group < 2; ++group) {  // of 16 tokens
    uint32_t codes[16];
#pragma unroll
    for (int place = 0; place < 16; ++place) {
      int const row = half * 32 + group * 16 + (p.wide ? place : permuted_token(place));
      float const value = bf16_to_float(tile[row * kHeadDim + channel]);
      codes[place] = signed_e4m3(__fmul_rn(value, factor));
    }
    int const piece = half * 2 + group;  // of 16 tokens
    if (p.wide) {
      uint32_t words[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) words[i] = pack_half(widened(codes[2 * i]), widened(codes[2 * i + 1]));
      for (int i = 0; i < 2; ++i) {
        *reinterpret_cast<uint4*>(out + swizzled(channel, 2 * piece + i)) =
            make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
      }
    } else {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = codes[4 * i] | (codes[4 * i + 1] << 8) | (codes[4 * i + 2] << 16) |
                   (codes[4 * i + 3] << 24);
      }
      *reinterpret_cast<uint4*>(out + swizzled_half(channel, piece)) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// Rows of the output behind the last token are zero.
__device__ __forceinline__ void clear_role(PrologueArguments const& p, int block) {
  int const lane = lane_of_thread();
  int const behind = p.length - p.num_tokens;
  int const index = block * kWarps + warp_of_thread();
  if (index >= p.batch * behind) return;
  int64_t const row = int64_t{index / behind} * p.length + p.num_tokens + index % behind;
  auto* out = reinterpret_cast<uint2*>(p.buffers.out + row * p.num_heads * kHeadDim);
  for (int head = 0; head < p.num_heads; ++head) out[head * kWarp + lane] = make_uint2(0u, 0u);
}

template <bool kPerThread, bool kRowScaled>
__device__ __forceinline__ void quantise_block(PrologueArguments const& p, uint16_t* tile,
                                               float* shared) {
  int block = static_cast<int>(blockIdx.x);
  if (block < p.row_blocks) return row_role<kPerThread, kRowScaled, 0>(p, block, shared);
  block -= p.row_blocks;
  if (block < p.row_blocks) return row_role<kPerThread, kRowScaled, 1>(p, block, shared);
  block -= p.row_blocks;
  if (block < p.value_blocks) return value_role<kRowScaled>(p, block, tile);
  clear_role(p, block - p.value_blocks);
}

template <bool kPerThread, bool kRowScaled>
__global__ void __launch_bounds__(kThreads) quantise_kernel(PrologueArguments const p) {
  alignas(16) __shared__ uint16_t tile[kKeyTile * kHeadDim];
  __shared__ float shared[kWarps * 8];
  quantise_block<kPerThread, kRowScaled>(p, tile, shared);
}

}  // namespace fastwan::sage2
