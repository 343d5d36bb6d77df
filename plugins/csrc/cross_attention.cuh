// Attention of the tokens to a few keys, from the raw query GEMM to the next GEMM's FP4 operand.
//
// A warp owns 16 rows. It reads them twice: for the norm across all channels, and head by head as
// operands of the MMA. Keys and values pass through shared memory, 32 keys at a time, the next ones
// on their way while these are used. The torch definition is plugins/glue_reference.py.
#pragma once

#include "residual_norm.cuh"
#include "tensor_core.cuh"

namespace fastwan {

constexpr int kHeadDim = 128;
constexpr int kKeyTile = 64;  // what key_tiles counts
constexpr int kStageKeys = 32;
constexpr int kRowWords = kHeadDim / 8 + 1;  // of 16 bytes; one more, so that rows differ in banks
constexpr int kMatrixWords = kStageKeys * kRowWords;
constexpr int kWarpRows = 16;
constexpr float kLog2E = 1.4426950408889634f;

struct CrossArguments {
  uint16_t const* y;       // [rows, 128 heads] bf16
  uint16_t const* bias;    // [128 heads] bf16
  uint16_t const* weight;  // [128 heads] bf16
  uint16_t const* k;       // [keys, 128 heads] bf16
  uint16_t const* v;       // [heads, keys, 128] bf16
  float const* key_bias;   // [keys]
  int const* key_tiles;    // [1]
  uint8_t* codes;
  uint8_t* scales;
  int rows;
  int heads;
  int keys;
  float eps;
  float scale;
  float const* factor;  // of y, [1], or null
};

inline int64_t cross_blocks(CrossArguments const& p) {
  return (int64_t{p.rows} + kWarps * kWarpRows - 1) / (kWarps * kWarpRows);
}

// bf16(y + bias) of two neighbours, y = bf16(product * factor).
__device__ __forceinline__ float2 biased(uint32_t product, float factor, uint32_t bias) {
  float2 const y = round_bf16(__fmul_rn(bf16_to_float(product & 0xFFFFu), factor),
                              __fmul_rn(__uint_as_float(product & 0xFFFF0000u), factor));
  return round_bf16(__fadd_rn(y.x, bf16_to_float(bias & 0xFFFFu)),
                    __fadd_rn(y.y, __uint_as_float(bias & 0xFFFF0000u)));
}

// rsqrt(mean(q^2) + eps) of a row, in every lane; the sum is in the order of `warp_sum`.
__device__ __forceinline__ float inverse_norm(CrossArguments const& p, float factor, int64_t row,
                                              int lane) {
  float sum[kLaneChannels] = {0.0f, 0.0f, 0.0f, 0.0f};
  int const first = lane * kLaneChannels;
  uint16_t const* y = p.y + row * p.heads * kHeadDim + first;
#pragma unroll 4
  for (int head = 0; head < p.heads; ++head) {
    uint2 const value = *reinterpret_cast<uint2 const*>(y + head * kHeadDim);
    uint2 const bias = *reinterpret_cast<uint2 const*>(p.bias + head * kHeadDim + first);
    float2 const low = biased(value.x, factor, bias.x), high = biased(value.y, factor, bias.y);
    float const x[kLaneChannels] = {low.x, low.y, high.x, high.y};
    for (int i = 0; i < kLaneChannels; ++i) sum[i] = __fadd_rn(sum[i], __fmul_rn(x[i], x[i]));
  }
  float const mean = __fdiv_rn(warp_sum(sum), static_cast<float>(p.heads * kHeadDim));
  return __frsqrt_rn(__fadd_rn(mean, p.eps));
}

// Two neighbours of a normalised query; zeros behind the last row.
__device__ __forceinline__ uint32_t query_pair(CrossArguments const& p, float factor, int64_t row,
                                               int channel, float inverse) {
  if (row >= p.rows) return 0u;
  auto const pair = [channel](uint16_t const* from) {
    return *reinterpret_cast<uint32_t const*>(from + channel);
  };
  float2 const q = biased(pair(p.y + row * p.heads * kHeadDim), factor, pair(p.bias));
  float2 const normed = round_bf16(__fmul_rn(q.x, inverse), __fmul_rn(q.y, inverse));
  uint32_t const weight = pair(p.weight);
  return pack_bf16(__fmul_rn(normed.x, bf16_to_float(weight & 0xFFFFu)),
                   __fmul_rn(normed.y, __uint_as_float(weight & 0xFFFF0000u)));
}

// 32 keys and values of a head on their way to shared memory.
__device__ __forceinline__ void fetch(CrossArguments const& p, uint4* stage, int head, int first) {
#pragma unroll
  for (int i = 0; i < kStageKeys * (kHeadDim / 8) / kThreads; ++i) {
    int const index = i * kThreads + static_cast<int>(threadIdx.x);
    int const key = index / (kHeadDim / 8), word = index % (kHeadDim / 8);
    int64_t const at = first + key;
    uint16_t const* k = p.k + (at * p.heads + head) * kHeadDim;
    uint16_t const* v = p.v + (int64_t{head} * p.keys + at) * kHeadDim;
    uint4* to = stage + key * kRowWords + word;
    copy_async(to, reinterpret_cast<uint4 const*>(k) + word);
    copy_async(to + kMatrixWords, reinterpret_cast<uint4 const*>(v) + word);
  }
}

// Two rows' maximum, sum and output of a head, as the MMA deals them out.
struct Softmax {
  float maximum[2];
  float sum[2];
  float out[kHeadDim / 8][4];
};

__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, 2));
}

// 32 keys of one head: logits, online softmax, and P V with P in bf16.
__device__ __forceinline__ void attend(CrossArguments const& p, uint32_t const (&q)[8][4],
                                       uint4 const* stage, int first, int lane, Softmax& state) {
  float s[kStageKeys / 8][4] = {};
#pragma unroll
  for (int n = 0; n < kStageKeys / 8; ++n) {
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; step += 2) {
      uint32_t b[4];
      load_matrices<false>(b, stage + (n * 8 + lane % 8) * kRowWords + step * 2 + lane / 8);
      mma_bf16(s[n], q[step], b[0], b[1]);
      mma_bf16(s[n], q[step + 1], b[2], b[3]);
    }
    auto const* bias = p.key_bias + first + n * 8 + lane % 4 * 2;
    for (int i = 0; i < 4; ++i) s[n][i] = __fadd_rn(__fmul_rn(s[n][i], p.scale), bias[i % 2]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = state.maximum[half];
    for (int n = 0; n < kStageKeys / 8; ++n) {
      largest = fmaxf(largest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    }
    largest = quad_max(largest);
    // Keys that are all masked so far have no maximum; their powers are 0 against any.
    float const base = largest == -INFINITY ? 0.0f : largest;
    float const rescale = power_of_two(__fmul_rn(__fsub_rn(state.maximum[half], base), kLog2E));
    state.maximum[half] = largest;
    float sum = __fmul_rn(state.sum[half], rescale);
    for (int n = 0; n < kStageKeys / 8; ++n) {
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        s[n][i] = power_of_two(__fmul_rn(__fsub_rn(s[n][i], base), kLog2E));
        sum = __fadd_rn(sum, s[n][i]);
      }
    }
    state.sum[half] = sum;
    for (int n = 0; n < kHeadDim / 8; ++n) {
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        state.out[n][i] = __fmul_rn(state.out[n][i], rescale);
      }
    }
  }
  uint4 const* values = stage + kMatrixWords + (lane % 16) * kRowWords + lane / 16;
#pragma unroll
  for (int step = 0; step < kStageKeys / 16; ++step) {
    float const(&even)[4] = s[2 * step], (&odd)[4] = s[2 * step + 1];
    uint32_t const probability[4] = {pack_bf16(even[0], even[1]), pack_bf16(even[2], even[3]),
                                     pack_bf16(odd[0], odd[1]), pack_bf16(odd[2], odd[3])};
#pragma unroll
    for (int pair = 0; pair < kHeadDim / 16; ++pair) {
      uint32_t b[4];
      load_matrices<true>(b, values + step * 16 * kRowWords + pair * 2);
      mma_bf16(state.out[2 * pair], probability, b[0], b[1]);
      mma_bf16(state.out[2 * pair + 1], probability, b[2], b[3]);
    }
  }
}

// One row of a head: O / l to bf16, quantised and stored. A quad of lanes holds the row, each two
// neighbours of every 8 channels, and stores 16 bytes of codes a lane.
__device__ __forceinline__ void store_head(CrossArguments const& p, Softmax const& state, int half,
                                           int64_t row, int head, int lane) {
  float sum = state.sum[half];
  sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 1));
  sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 2));
  float const inverse = __frcp_rn(sum);
  uint32_t words[4] = {}, scales[2] = {};
#pragma unroll
  for (int group = 0; group < kHeadDim / kGroup; ++group) {
    float2 value[2];
    for (int i = 0; i < 2; ++i) {
      float const(&o)[4] = state.out[2 * group + i];
      value[i] = round_bf16(__fmul_rn(o[2 * half], inverse), __fmul_rn(o[2 * half + 1], inverse));
    }
    float const amax = quad_max(fmaxf(fmaxf(fabsf(value[0].x), fabsf(value[0].y)),
                                      fmaxf(fabsf(value[1].x), fabsf(value[1].y))));
    BlockScale const scale = divisor(amax);
    scales[group / 4] |= scale.code << (group % 4 * 8);
    uint32_t const codes = four_codes(value[0].x, value[0].y, value[1].x, value[1].y, scale);
    for (int i = 0; i < 2; ++i) {
      uint32_t word = ((codes >> (8 * i)) & 0xFFu) << (lane % 4 * 8);
      word |= __shfl_xor_sync(0xFFFFFFFFu, word, 1);
      word |= __shfl_xor_sync(0xFFFFFFFFu, word, 2);
      int const index = 2 * group + i;
      if (index / 4 == lane % 4) words[index % 4] = word;
    }
  }
  if (row >= p.rows) return;
  int64_t const at = row * p.heads + head;
  auto* codes = reinterpret_cast<uint4*>(p.codes + at * (kHeadDim / 2));
  codes[lane % 4] = make_uint4(words[0], words[1], words[2], words[3]);
  if (lane % 4 == 0) {
    *reinterpret_cast<uint2*>(p.scales + at * (kHeadDim / kGroup)) =
        make_uint2(scales[0], scales[1]);
  }
}

__global__ void __launch_bounds__(kThreads) cross_attention_kernel(CrossArguments const p) {
  __shared__ uint4 stages[2][2 * kMatrixWords];
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  int64_t const begin = (int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp) *
                        kWarpRows;
  int const most = p.keys / kKeyTile;
  int const asked = *p.key_tiles;
  int const tiles = (asked < 1 ? 1 : asked > most ? most : asked) * (kKeyTile / kStageKeys);
  fetch(p, stages[0], 0, 0);

  float const factor = factor_or_one(p.factor);
  // Lane i needs the norms of rows i / 4 and i / 4 + 8.
  float inverse[2] = {0.0f, 0.0f};
  for (int r = 0; r < kWarpRows; ++r) {
    if (begin + r < p.rows) {
      float const found = inverse_norm(p, factor, begin + r, lane);
      if (r == lane / 4) inverse[0] = found;
      if (r == lane / 4 + 8) inverse[1] = found;
    }
  }
  int64_t const rows[2] = {begin + lane / 4, begin + lane / 4 + 8};
  int turn = 0;
  for (int head = 0; head < p.heads; ++head) {
    uint32_t q[kHeadDim / 16][4];
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      for (int i = 0; i < 4; ++i) {
        int const channel = head * kHeadDim + step * 16 + i / 2 * 8 + lane % 4 * 2;
        q[step][i] = query_pair(p, factor, rows[i % 2], channel, inverse[i % 2]);
      }
    }
    Softmax state{};
    state.maximum[0] = state.maximum[1] = -INFINITY;
    for (int tile = 0; tile < tiles; ++tile, turn ^= 1) {
      wait_for_copies();
      __syncthreads();  // these keys are here, and the ones before them are no longer read
      bool const last = tile + 1 == tiles;
      if (!last || head + 1 < p.heads) {
        fetch(p, stages[turn ^ 1], head + last, last ? 0 : (tile + 1) * kStageKeys);
      }
      attend(p, q, stages[turn], tile * kStageKeys, lane, state);
    }
    store_head(p, state, 0, rows[0], head, lane);
    store_head(p, state, 1, rows[1], head, lane);
  }
}

}  // namespace fastwan
