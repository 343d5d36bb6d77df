// One tile of 64 keys of SageAttention2++, for a warp with 16 queries: logits, softmax, product with
// the values. The torch definition is `attend` in plugins/sage2_reference.py.
//
// Compute capability 9.0 has no MMA on e4m3. There the values are fp16 numbers 256 times as large, and
// a code of a probability, shifted into place, is an fp16 number 256 times as small: their products,
// and the fp16 sums, are the same numbers.
#pragma once

#include "sage2_layout.h"
#include "sage2_tensor_core.cuh"

// Whether values are fp16.
#ifndef FASTWAN_SAGE2_WIDE
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#define FASTWAN_SAGE2_WIDE 1
#else
#define FASTWAN_SAGE2_WIDE 0
#endif
#endif

namespace fastwan::sage2 {

constexpr bool kWide = FASTWAN_SAGE2_WIDE != 0;
constexpr int kWarpQueries = 16;
constexpr int kQuerySteps = kRowBytes / 32;          // MMAs along the channels of a query
constexpr int kKeyColumns = kKeyTile / 8;            // n8 tiles of logits
constexpr int kValueColumns = FASTWAN_HEAD_DIM / 8;  // n8 tiles of the output
constexpr int kValueSteps = kKeyTile / (kWide ? 16 : 32);  // MMAs along the keys

// Bytes of a tile of values where they are fp16 (wide) or e4m3.
constexpr int value_tile_bytes(bool wide) { return FASTWAN_HEAD_DIM * kKeyTile * (wide ? 2 : 1); }
constexpr int kValueRowBytes = value_tile_bytes(kWide) / FASTWAN_HEAD_DIM;

constexpr float kMaximumOffset = 8.807f;  // of log2, so that probabilities reach 448
constexpr float kLowest = -5000000.0f;    // maximum of no keys
constexpr uint32_t kMaskedBits = 0xFF000000u;  // -2^127
// A sum of int8 products lies within 2^21; added to the bits of this number it is added to the number.
constexpr uint32_t kStartBits = 0x4B400000u;
constexpr float kStart = 12582912.0f;

// A warp's queries as the MMAs deal them out: a lane has rows lane/4 and lane/4 + 8, and of 8 columns
// 2 (lane%4) and the next.
struct State {
  uint32_t queries[kQuerySteps][4];
  float maximum[2];
  float sum[2];
  float out[kValueColumns][4];
};

using Logits = uint32_t[kKeyColumns][4];
using Probabilities = uint32_t[kValueSteps][4];

// A warp's queries, which stay in registers.
__device__ __forceinline__ void load_queries(State& state, Shared queries, int lane) {
  Shared const query = queries + swizzled(lane % 16, lane / 16);
#pragma unroll
  for (int step = 0; step < kQuerySteps; ++step) {
    load_matrices_at(state.queries[step], turned_over(query, 32 * step));
  }
}

// Sums of int8 products of 16 queries and 64 keys, beginning at kStartBits.
__device__ __forceinline__ void logits(Logits& s, State const& state, Shared keys, int lane) {
  uint32_t const start[4] = {kStartBits, kStartBits, kStartBits, kStartBits};
  Shared const key = keys + swizzled(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int step = 0; step < kQuerySteps; ++step) {
#pragma unroll
    for (int pair = 0; pair < kKeyColumns / 2; ++pair) {
      uint32_t k[4];
      load_matrices_at(k, turned_over(key, 32 * step) + pair * 16 * kRowBytes);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        auto& d = s[2 * pair + n];
        if (step == 0) {
          mma_int8(d, state.queries[step], k[2 * n], k[2 * n + 1], start);
        } else {
          mma_int8(d, state.queries[step], k[2 * n], k[2 * n + 1], d);
        }
      }
    }
  }
}

// Logits of keys from `valid` on become lower than any.
__device__ __forceinline__ void mask(Logits& s, int valid, int lane) {
#pragma unroll
  for (int n = 0; n < kKeyColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bool const masked = n * 8 + lane % 4 * 2 + i % 2 >= valid;
      s[n][i] = masked ? kMaskedBits : s[n][i];
    }
  }
}

// A sum of int8 products as a number.
__device__ __forceinline__ float product(uint32_t bits) {
  return __fadd_rn(__uint_as_float(bits), -kStart);
}

__device__ __forceinline__ float across_quad(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, 2));
}

// From sums of products to probabilities, in place; `factor` makes logits in base 2 of them. Keeps
// maximum and sum of each row, and gives what the output so far is to be multiplied by.
__device__ __forceinline__ void softmax(Logits& s, State& state, float (&rescale)[2], float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Positive numbers, and a masked one that is negative, are in the order of their bits.
    int32_t most = static_cast<int32_t>(s[0][2 * half]);
#pragma unroll
    for (int i = 1; i < 2 * kKeyColumns; ++i) {
      auto const bits = static_cast<int32_t>(s[i / 2][2 * half + i % 2]);
      most = most > bits ? most : bits;
    }
    float const before = state.maximum[half];
    float const largest = product(static_cast<uint32_t>(most));
    float const now = fmaxf(before, across_quad(__fmaf_rn(largest, factor, -kMaximumOffset)));
    state.maximum[half] = now;
    rescale[half] = power_of_two(__fsub_rn(before, now));
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 2 * kKeyColumns; ++i) {
      uint32_t& bits = s[i / 2][2 * half + i % 2];
      float const value = power_of_two(__fmaf_rn(product(bits), factor, -now));
      sums[i % 2] = __fadd_rn(sums[i % 2], value);
      bits = __float_as_uint(value);
    }
    state.sum[half] =
        __fmaf_rn(state.sum[half], rescale[half], __fadd_rn(sums[0], sums[1]));
  }
}

// Probabilities as operands of an MMA: e4m3 codes, or these in the seven bits below an fp16 sign.
__device__ __forceinline__ void pack_probabilities(Probabilities& a, Logits const& s) {
#pragma unroll
  for (int pair = 0; pair < kKeyColumns / 2; ++pair) {  // of n8 tiles
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float const even[2] = {__uint_as_float(s[2 * pair][2 * half]),
                             __uint_as_float(s[2 * pair][2 * half + 1])};
      float const odd[2] = {__uint_as_float(s[2 * pair + 1][2 * half]),
                            __uint_as_float(s[2 * pair + 1][2 * half + 1])};
#if FASTWAN_SAGE2_WIDE
      uint32_t const codes = pack_e4m3(even[0], odd[0], even[1], odd[1]);
      a[pair][half] = (codes << 7) & 0x7F807F80u;
      a[pair][2 + half] = (codes >> 1) & 0x7F807F80u;
#else
      a[pair / 2][pair % 2 * 2 + half] = pack_e4m3(even[0], even[1], odd[0], odd[1]);
#endif
    }
  }
}

// B operands of 8 channels and all keys of a tile.
__device__ __forceinline__ void load_values(uint32_t (&b)[kValueSteps][2], Shared values, int column,
                                            int lane) {
  int const piece = kWide ? swizzled(lane % 8, lane / 8) : swizzled_half(lane % 8, lane / 8);
  Shared const first = values + piece;
#pragma unroll
  for (int part = 0; part < kValueSteps / 2; ++part) {
    uint32_t four[4];
    load_matrices_at(four, turned_over(first, 64 * part) + column * 8 * kValueRowBytes);
    for (int i = 0; i < 4; ++i) b[2 * part + i / 2][i % 2] = four[i];
  }
}

__device__ __forceinline__ void multiply(uint32_t (&d)[2], uint32_t const (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#if FASTWAN_SAGE2_WIDE
  mma_half(d, a, b0, b1);
#else
  mma_e4m3(d, a, b0, b1);
#endif
}

// O = O rescale + P V, the product of these 64 keys summed in fp16.
__device__ __forceinline__ void accumulate(State& state, Probabilities const& a,
                                           float const (&rescale)[2], Shared values, int lane) {
#pragma unroll
  for (int column = 0; column < kValueColumns; ++column) {
    uint32_t b[kValueSteps][2];
    uint32_t d[2] = {};
    load_values(b, values, column, lane);
#pragma unroll
    for (int step = 0; step < kValueSteps; ++step) multiply(d, a[step], b[step][0], b[step][1]);
    auto& out = state.out[column];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 const added = unpack_half(d[half]);
      out[2 * half] = __fmaf_rn(out[2 * half], rescale[half], added.x);
      out[2 * half + 1] = __fmaf_rn(out[2 * half + 1], rescale[half], added.y);
    }
  }
}

// Softmax of a tile's logits, and its part of the output.
__device__ __forceinline__ void attend(State& state, Logits& s, Shared values, float factor,
                                       int lane) {
  float rescale[2];
  Probabilities a;
  softmax(s, state, rescale, factor);
  pack_probabilities(a, s);
  accumulate(state, a, rescale, values, lane);
}

}  // namespace fastwan::sage2
