// Queries of the attention to a few keys: bias, norm, and their way to shared memory.
#pragma once

#include "residual_norm.cuh"
#include "tensor_core.cuh"

namespace fastwan {

constexpr int kHeadDim = 128;
constexpr int kKeyTile = 64;  // what key_tiles counts
constexpr int kStageKeys = 32;
constexpr int kRowWords = kHeadDim / 8;  // of 16 bytes, a row of a head
constexpr int kMatrixWords = kStageKeys * kRowWords;
constexpr int kWarpRows = 16;
constexpr int kCrossBlocks = 2;  // at a time on a multiprocessor, which takes 96 KB
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

// The thread's number, read anew: what follows from it is then computed where it is used. The
// compiler would keep it in registers that the loop over keys needs.
__device__ __forceinline__ int thread_anew() {
#ifdef FASTWAN_HOST_EMULATION
  return static_cast<int>(threadIdx.x);
#else
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#endif
}

// Where a row's word lies in shared memory: eight rows' words of one number are in different banks.
__device__ __forceinline__ int word_at(int row, int word) {
  return row * kRowWords + (word ^ (row % 8));
}

// bf16(y + bias) of two neighbours, y = bf16(product * factor).
__device__ __forceinline__ uint32_t biased(uint32_t product, float factor, uint32_t bias) {
  return fma_pair(scale_pair(product, factor), kOnes, bias);
}

// rsqrt(mean(q^2) + eps) of row lane % 16, q as `biased`; sums are in the order of `warp_sum`.
__device__ __forceinline__ float inverse_norm(CrossArguments const& p, float factor, int begin,
                                              int lane) {
  constexpr int kRows = 4;  // at a time
  int const first = lane * kLaneChannels;
  float inverse = 0.0f;
#pragma unroll 1
  for (int four = 0; four < kWarpRows; four += kRows) {
    float sum[kRows][kLaneChannels] = {};
#pragma unroll 4
    for (int head = 0; head < p.heads; ++head) {
      uint2 const bias = *reinterpret_cast<uint2 const*>(p.bias + head * kHeadDim + first);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        int64_t const row = min(begin + four + r, p.rows - 1);
        uint2 const y =
            *reinterpret_cast<uint2 const*>(p.y + (row * p.heads + head) * kHeadDim + first);
        Four const q = unpack_four(
            make_uint2(biased(y.x, factor, bias.x), biased(y.y, factor, bias.y)));
        for (int i = 0; i < kLaneChannels; ++i) {
          sum[r][i] = __fadd_rn(sum[r][i], __fmul_rn(q.x[i], q.x[i]));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float const total = warp_sum(sum[r]);
      if (lane % kWarpRows == four + r) inverse = total;
    }
  }
  float const mean = __fdiv_rn(inverse, static_cast<float>(p.heads * kHeadDim));
  return __frsqrt_rn(__fadd_rn(mean, p.eps));
}

// Two neighbours of a normalised query.
__device__ __forceinline__ uint32_t query_pair(uint32_t product, float factor, uint32_t bias,
                                               float inverse, uint32_t weight) {
  uint32_t const normed = scale_pair(biased(product, factor, bias), inverse);
  return fma_pair(normed, weight, kMinusZeros);
}

// A head of a warp's queries on its way to shared memory; behind the last row, that row. A lane
// copies the words that it will normalise.
__device__ __forceinline__ void fetch_queries(CrossArguments const& p, uint4* to, int begin,
                                              int head) {
  int const lane = thread_anew() % kWarp;
  auto const* y = reinterpret_cast<uint4 const*>(p.y);
  int const word = lane % kRowWords;
#pragma unroll 4
  for (int i = 0; i < kWarpRows; i += 2) {
    int const row = i + lane / kRowWords;
    int64_t const from = min(begin + row, p.rows - 1);
    copy_async(to + word_at(row, word), y + (from * p.heads + head) * kRowWords + word);
  }
}

// Normalises them where they are. `inverse` is that of row lane % 16.
__device__ __forceinline__ void normalise_queries(CrossArguments const& p, float factor,
                                                  uint4* queries, int head, float inverse) {
  int const lane = thread_anew() % kWarp;
  int const word = lane % kRowWords;
  int const channel = head * kHeadDim + word * 8;
  uint4 const bias = *reinterpret_cast<uint4 const*>(p.bias + channel);
  uint4 const weight = *reinterpret_cast<uint4 const*>(p.weight + channel);
#pragma unroll 4
  for (int i = 0; i < kWarpRows; i += 2) {
    int const row = i + lane / kRowWords;
    float const norm = __uint_as_float(
        __shfl_sync(kWholeWarp, __float_as_uint(inverse), row, kWarp));
    uint4& q = queries[word_at(row, word)];
    q = make_uint4(query_pair(q.x, factor, bias.x, norm, weight.x),
                   query_pair(q.y, factor, bias.y, norm, weight.y),
                   query_pair(q.z, factor, bias.z, norm, weight.z),
                   query_pair(q.w, factor, bias.w, norm, weight.w));
  }
}

}  // namespace fastwan
