// Attention of the tokens to a few keys, from the raw query GEMM to the next GEMM's FP4 operand.
//
// A warp owns 16 rows. It reads them twice: for the norm across all channels, and head by head as
// operands of the MMA, which lie in shared memory. Keys and values pass through it 32 at a time:
// keys are on their way while the values before them are used, and values while their keys are. The
// torch definition is plugins/glue_reference.py.
#pragma once

#include "cross_queries.cuh"

namespace fastwan {

// What `load_matrices` reads of 16 rows: a lane names one, and one of two neighbouring words.
struct LaneWords {
  int first;

  __device__ __forceinline__ LaneWords() {
    int const lane = thread_anew() % kWarp;
    first = word_at(lane % 16, lane / 16);
  }
  // Words 2 pair and 2 pair + 1.
  __device__ __forceinline__ int operator()(int pair) const {
    return (first ^ (pair % 4 * 2)) + pair / 4 * 8;
  }
};

// 32 rows of a head, of keys or of values, on their way to shared memory: `from` is the first, of
// 16 words like each of them, and the next one is `stride` words behind it.
__device__ __forceinline__ void fetch(uint4* to, uint4 const* from, int stride) {
  int const thread = thread_anew();
  int const row = thread / kRowWords, word = thread % kRowWords;
  constexpr int kRows = kThreads / kRowWords;  // at a time
#pragma unroll
  for (int first = 0; first < kStageKeys; first += kRows) {
    copy_async(to + first * kRowWords + word_at(row, word), from + (first + row) * stride + word);
  }
}

__device__ __forceinline__ void fetch_keys(CrossArguments const& p, uint4* to, int head,
                                           int first) {
  auto const* k = reinterpret_cast<uint4 const*>(p.k);
  fetch(to, k + (int64_t{first} * p.heads + head) * kRowWords, p.heads * kRowWords);
}

__device__ __forceinline__ void fetch_values(CrossArguments const& p, uint4* to, int head,
                                             int first) {
  auto const* v = reinterpret_cast<uint4 const*>(p.v);
  fetch(to, v + (int64_t{head} * p.keys + first) * kRowWords, kRowWords);
}

// Two rows' maximum, sum and output of a head, as the MMA deals them out.
struct Softmax {
  float maximum[2];
  float sum[2];
  float out[kHeadDim / 8][4];
};

__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, 1));
  return fmaxf(value, __shfl_xor_sync(kWholeWarp, value, 2));
}

using Logits = float[kStageKeys / 8][4];

// Logits of a warp's rows and 32 keys of a head.
__device__ __forceinline__ void multiply_keys(CrossArguments const& p, uint4 const* queries,
                                              uint4 const* keys, int first, Logits& s) {
  LaneWords const words;
#pragma unroll 4  // with all at once registers spill
  for (int step = 0; step < kHeadDim / 16; ++step) {
    uint32_t q[4];
    load_matrices<false>(q, queries + words(step));
#pragma unroll
    for (int n = 0; n < kStageKeys / 8; n += 2) {
      uint32_t b[4];
      load_matrices<false>(b, keys + n * 8 * kRowWords + words(step));
      mma_bf16(s[n], q, b[0], b[2]);
      mma_bf16(s[n + 1], q, b[1], b[3]);
    }
  }
  auto const* bias = p.key_bias + first + thread_anew() % 4 * 2;
#pragma unroll
  for (int n = 0; n < kStageKeys / 8; ++n) {
    float const low = bias[n * 8], high = bias[n * 8 + 1];
    for (int i = 0; i < 4; ++i) {
      s[n][i] = __fadd_rn(__fmul_rn(s[n][i], p.scale), i % 2 == 0 ? low : high);
    }
  }
}

// Online softmax of 32 more keys: logits become powers, and what was summed before is rescaled.
__device__ __forceinline__ void softmax(Logits& s, Softmax& state) {
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
}

// P V of 32 keys, with P in bf16.
__device__ __forceinline__ void multiply_values(Logits const& s, uint4 const* values,
                                                Softmax& state) {
  LaneWords const words;
#pragma unroll
  for (int step = 0; step < kStageKeys / 16; ++step) {
    float const(&even)[4] = s[2 * step], (&odd)[4] = s[2 * step + 1];
    uint32_t const probability[4] = {pack_bf16(even[0], even[1]), pack_bf16(even[2], even[3]),
                                     pack_bf16(odd[0], odd[1]), pack_bf16(odd[2], odd[3])};
#pragma unroll
    for (int pair = 0; pair < kHeadDim / 16; ++pair) {
      uint32_t b[4];
      load_matrices<true>(b, values + step * 16 * kRowWords + words(pair));
      mma_bf16(state.out[2 * pair], probability, b[0], b[1]);
      mma_bf16(state.out[2 * pair + 1], probability, b[2], b[3]);
    }
  }
}

// One row of a head: O / l to bf16, quantised and stored. A quad of lanes holds the row, each two
// neighbours of every 8 channels.
__device__ __forceinline__ void store_head(CrossArguments const& p, Softmax const& state, int half,
                                           int begin, int head) {
  int const lane = thread_anew() % kWarp;
  int const row = begin + lane / 4 + 8 * half;
  float sum = state.sum[half];
  sum = __fadd_rn(sum, __shfl_xor_sync(kWholeWarp, sum, 1));
  sum = __fadd_rn(sum, __shfl_xor_sync(kWholeWarp, sum, 2));
  float const inverse = __frcp_rn(sum);
#pragma unroll
  for (int four = 0; four < kHeadDim / kGroup; four += kQuad) {
    uint32_t pairs[kQuad][2];
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      for (int j = 0; j < 2; ++j) {
        float const(&o)[4] = state.out[2 * (four + i) + j];
        pairs[i][j] =
            pack_bf16(__fmul_rn(o[2 * half], inverse), __fmul_rn(o[2 * half + 1], inverse));
      }
    }
    QuadGroup const group = quantize_quad(pairs, lane);
    if (row < p.rows) {
      // A lane's 16 bits are a byte of the first 8 channels and one of the other 8.
      int64_t const first = (int64_t{row} * p.heads + head) * (kHeadDim / kGroup) + four;
      int64_t const at = first + lane % kQuad;
      reinterpret_cast<uint2*>(p.codes)[at] =
          make_uint2(permute(group.codes.x, group.codes.y, 0x6420u),
                     permute(group.codes.x, group.codes.y, 0x7531u));
      p.scales[at] = static_cast<uint8_t>(group.scale);
    }
  }
}

// Loads of 32 keys that a head needs.
__device__ __forceinline__ int stages_of(CrossArguments const& p) {
  return min(max(*p.key_tiles, 1), p.keys / kKeyTile) * (kKeyTile / kStageKeys);
}

__global__ void __launch_bounds__(kThreads, kCrossBlocks)
    cross_attention_kernel(CrossArguments const p) {
  __shared__ uint4 queries[kWarps][kWarpRows * kRowWords];
  __shared__ uint4 keys[kMatrixWords], values[kMatrixWords];
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  int const warp = static_cast<int>(threadIdx.x) / kWarp;
  int const begin = (static_cast<int>(blockIdx.x) * kWarps + warp) * kWarpRows;
  fetch_keys(p, keys, 0, 0);
  fetch_queries(p, queries[warp], begin, 0);
  float const inverse = inverse_norm(p, factor_or_one(p.factor), begin, lane);
  for (int head = 0; head < p.heads; ++head) {
    wait_for_copies();
    normalise_queries(p, factor_or_one(p.factor), queries[warp], head, inverse);
    Softmax state{};
    state.maximum[0] = state.maximum[1] = -INFINITY;
    // Read for each head, like the factor: no register is left for either.
    int const stages = stages_of(p);
    for (int stage = 0; stage < stages; ++stage) {
      wait_for_copies();
      __syncthreads();  // these keys are here, and the values before them are no longer read
      fetch_values(p, values, head, stage * kStageKeys);
      Logits s{};
      multiply_keys(p, queries[warp], keys, stage * kStageKeys, s);
      softmax(s, state);
      wait_for_copies();
      __syncthreads();  // these values are here, their keys and last queries are no longer read
      bool const last = stage + 1 == stages;
      if (!last || head + 1 < p.heads) {
        fetch_keys(p, keys, head + last, last ? 0 : (stage + 1) * kStageKeys);
        if (last) fetch_queries(p, queries[warp], begin, head + 1);
      }
      multiply_values(s, values, state);
    }
    store_head(p, state, 0, begin, head);
    store_head(p, state, 1, begin, head);
  }
}

}  // namespace fastwan
