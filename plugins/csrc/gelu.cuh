// tanh GELU of bf16 numbers: computed once a block of threads, then looked up.
#pragma once

#include "pairs.cuh"

namespace fastwan {

// x / (1 + exp(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3).
//
// Rounded to bf16 it is the exact value for every finite bf16 x, but for results below 2^-124, which
// no scale can tell from 0: a test tries all. Only operations that round the same everywhere are
// used. As a power of two the exponent is x (c1 + c2 x^2); its whole part goes into the bits of 2^f.
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kC1 = -2.302208198f, kC2 = -0.1029432396f, kRound = 12582912.0f;  // 1.5 * 2^23
  float const exponent = __fmul_rn(x, __fmaf_rn(kC2, __fmul_rn(x, x), kC1));
  float const z = fminf(fmaxf(exponent, -126.0f), 127.0f);
  float const shifted = __fadd_rn(z, kRound);
  float const f = __fsub_rn(z, __fsub_rn(shifted, kRound));
  float power = 1.5403530e-4f;
  power = __fmaf_rn(power, f, 1.3333558e-3f);
  power = __fmaf_rn(power, f, 9.6181291e-3f);
  power = __fmaf_rn(power, f, 5.5504109e-2f);
  power = __fmaf_rn(power, f, 2.4022651e-1f);
  power = __fmaf_rn(power, f, 6.9314718e-1f);
  power = __fmaf_rn(power, f, 1.0f);
  power = __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
  // Below -16 the largest power is too small a divisor.
  return __fdiv_rn(fmaxf(x, -16.0f), __fadd_rn(power, 1.0f));
}

// bf16 numbers from 2^-10 to 4. The result of a smaller one is at most 2^-11, and no code tells it
// from 0; that of a larger one is itself or, of a negative one, again below 2^-11. Tests try all.
constexpr uint32_t kGeluFirst = 0x3A80u, kGeluLast = 0x4080u;
constexpr int kGeluEntries = static_cast<int>(kGeluLast - kGeluFirst) + 1;

// The magnitude of GELU of a number of the table in the low half, of minus the number in the high
// half. The last stands for all above it: NaN, for `gelu_pair` then takes the number itself, and 0.
__device__ __forceinline__ uint32_t gelu_entry(int index) {
  float const x = bf16_to_float(kGeluFirst + static_cast<uint32_t>(index));
  if (index == kGeluEntries - 1) return 0x7FFFu;
  return pack_bf16(gelu_tanh(x), -gelu_tanh(-x));
}

// Magnitudes of bf16(GELU) of two numbers, whose signs the results have; where the result is below
// 2^-11, any magnitude up to that.
__device__ __forceinline__ uint32_t gelu_pair(uint32_t const* table, uint32_t x) {
  constexpr uint32_t kFirst = kGeluFirst * 0x10001u, kLast = kGeluLast * 0x10001u;
  uint32_t const magnitude = x & kMagnitudes;
  uint32_t const index = max_pair(min_pair(magnitude, kLast), kFirst);
  uint32_t const low = table[(index & 0xFFFFu) - kGeluFirst];
  uint32_t const high = table[(index >> 16) - kGeluFirst];
  uint32_t const negative = permute(x, 0u, 0x44B9u) & 0x2222u;  // takes the high half of an entry
  return min_pair(permute(low, high, negative | 0x5410u), magnitude);
}

}  // namespace fastwan
