// What the glue needs of CUDA beyond host_emulation.h, on the host. For tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "host_emulation.h"

#undef __launch_bounds__
#define __launch_bounds__(...)

// The product of two fp32 numbers of which one has at most 24 bits is exact in double, unless it is
// too large for fp32.
inline float __fmul_rz(float a, float b) {
  double const exact = static_cast<double>(a) * static_cast<double>(b);
  float const nearest = static_cast<float>(exact);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(exact) ? std::nextafterf(nearest, 0.0f)
                                                                    : nearest;
}

inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int distance) {
  namespace e = fastwan::emulation;
  return e::exchanged(value, e::current ^ distance);
}

inline int max(int a, int b) { return a < b ? b : a; }
inline int min(int a, int b) { return a < b ? a : b; }

namespace fastwan::emulation {

// The nearest bf16 number, to even on a tie, as its 16 bits.
inline uint32_t nearest_bf16(double value) {
  if (std::isfinite(value) && value != 0.0) {
    int exponent;
    std::frexp(value, &exponent);
    int const unit = std::max(exponent, -125) - 8;
    value = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
  }
  return __float_as_uint(static_cast<float>(value)) >> 16;
}

inline double half_of(uint32_t pair, int which) {
  return __uint_as_float(which == 0 ? pair << 16 : pair & 0xFFFF0000u);
}

template <typename Function>
uint32_t each_half(Function function) {
  return nearest_bf16(function(0)) | (nearest_bf16(function(1)) << 16);
}

// Exact in double before the rounding, where the kernels use it.
inline uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  return each_half([=](int i) { return half_of(a, i) * half_of(b, i) + half_of(c, i); });
}

inline uint32_t larger_pair(uint32_t a, uint32_t b) {
  return each_half([=](int i) { return std::fmax(half_of(a, i), half_of(b, i)); });
}

inline uint32_t smaller_pair(uint32_t a, uint32_t b) {
  return each_half([=](int i) { return std::fmin(half_of(a, i), half_of(b, i)); });
}

inline uint32_t permute(uint32_t low, uint32_t high, uint32_t select) {
  uint32_t const bytes = __byte_perm(low, high, select);
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    uint32_t const byte = (bytes >> (8 * i)) & 0xFFu;
    bool const sign = ((select >> (4 * i)) & 8u) != 0;
    result |= (sign ? (byte >> 7) * 0xFFu : byte) << (8 * i);
  }
  return result;
}

inline uint32_t bf16_operands[kThreads][6];
inline uint4 const* matrix_rows[kThreads];

// mma.m16n8k16 with bf16 operands and fp32 sums; every thread of the warp takes part.
inline void mma_bf16(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  Barrier& barrier = warp_barriers[current / kWarp];
  uint32_t* const mine = bf16_operands[current];
  for (int i = 0; i < 4; ++i) mine[i] = a[i];
  mine[4] = b0;
  mine[5] = b1;
  wait(barrier, kWarp);
  int const lane = current % kWarp;
  uint32_t const(*warp)[6] = bf16_operands + (current - lane);
  for (int i = 0; i < 4; ++i) {
    int const row = lane / 4 * 4, column = (lane % 4 * 2 + i % 2) * 4;  // first lanes of a quad
    double sum = d[i];
    for (int quad = 0; quad < 4; ++quad) {
      for (int half = 0; half < 2; ++half) {
        uint32_t const x = warp[row + quad][2 * half + i / 2], y = warp[column + quad][4 + half];
        for (int k = 0; k < 2; ++k) sum += half_of(x, k) * half_of(y, k);
      }
    }
    d[i] = static_cast<float>(sum);
  }
  wait(barrier, kWarp);
}

// ldmatrix.x4; every thread of the warp takes part.
inline void load_matrices(uint32_t (&out)[4], uint4 const* row, bool transposed) {
  Barrier& barrier = warp_barriers[current / kWarp];
  matrix_rows[current] = row;
  wait(barrier, kWarp);
  int const lane = current % kWarp;
  for (int matrix = 0; matrix < 4; ++matrix) {
    out[matrix] = 0;
    for (int i = 0; i < 2; ++i) {
      int const from = transposed ? lane % 4 * 2 + i : lane / 4;
      int const column = transposed ? lane / 4 : lane % 4 * 2 + i;
      uint16_t values[8];
      std::memcpy(values, matrix_rows[current - lane + matrix * 8 + from], sizeof values);
      out[matrix] |= uint32_t{values[column]} << (16 * i);
    }
  }
  wait(barrier, kWarp);
}

}  // namespace fastwan::emulation
