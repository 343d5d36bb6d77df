// 16 neighbours in bf16 as FP4 codes and an e4m3 scale.
//
// The torch definition is `quantize_activation` of plugins/nvfp4.py: a code is that of the exact
// quotient of value and rounded scale.
#pragma once

#include "pairs.cuh"

namespace fastwan {

constexpr int kGroup = 16;  // values that share a scale

// Scale of a group: its code, and 1 / scale as `four_codes` takes it, 0 where the scale is 0.
struct GroupScale {
  uint32_t code;
  uint32_t inverse;
};

#if FASTWAN_HAS_E2M1
// A reciprocal that is never below 1 / scale. Multiplied by it and rounded towards zero, a bf16
// value has the code of the quotient: the sign of the error is such that a tie stays one. With the
// nearest reciprocal and product, 1.25 * 15 / 15 is above 1.25.
__device__ __forceinline__ uint32_t reciprocal(float scale) {
  float const nearest = __frcp_rn(scale);
  return __float_as_uint(nearest) + (__fmaf_rn(nearest, scale, -1.0f) < 0.0f ? 1u : 0u);
}
#else
// A number as the sum of two in bf16, the larger one in the high half.
__device__ __forceinline__ uint32_t split_in_two(float value) {
  float const larger = __uint_as_float(pack_bf16(0.0f, value));
  return pack_bf16(__fsub_rn(value, larger), value);
}

// 2 / scale. A unit in its last place more or less changes no code.
__device__ __forceinline__ uint32_t reciprocal(float scale) {
  return split_in_two(approximate_reciprocal(__fmul_rn(scale, 0.5f)));
}
#endif

// Scale of 16 values of which the largest magnitude is `amax`. Its code is that of amax / 6, the
// product with the rounded 1/6 notwithstanding: a test tries every bf16 number.
__device__ __forceinline__ GroupScale group_scale(float amax) {
  uint32_t const code = to_e4m3(__fmul_rn(amax, 0.16666667f));
  return {code, code == 0u ? 0u : reciprocal(from_e4m3(code))};
}

// Two pairs of values whose signs may stand apart from their magnitudes.
struct FourValues {
  uint32_t magnitudes[2];
  uint32_t signed_values[2];  // read for their signs only
};

__device__ __forceinline__ FourValues four_values(uint32_t x01, uint32_t x23) {
  return {{x01 & kMagnitudes, x23 & kMagnitudes}, {x01, x23}};
}

// Four codes in 16 bits, first in the lowest nibble; `inverse` is that of the values' scale.
//
// Without an instruction for it, a code is the nearest integer, to even on a tie, of the least of
// 2q, q + 2 and q / 2 + 4, q being the quotient: these lines meet where the step of e2m1 doubles.
// Added to 128, bf16 has no bits below 1, so that a line costs one multiplication and addition for
// two values. q itself is rounded to bf16 from a sum of 17 bits. A value times 1 / scale that is a
// tie has 3 bits and stays one; any other is at least 0.53 units in bf16's last place away from
// every tie, since value and tie times scale are both bf16 numbers. Tests try all.
__device__ __forceinline__ uint32_t four_codes(FourValues const& value, uint32_t inverse) {
  uint32_t const(&x)[2] = value.magnitudes;
#if FASTWAN_HAS_E2M1
  float const factor = __uint_as_float(inverse);
  auto const quotient = [factor](uint32_t magnitude, uint32_t sign) {
    return __fmul_rz(__uint_as_float(magnitude | (sign & 0x80000000u)), factor);
  };
  uint32_t const(&from)[2] = value.signed_values;
  uint32_t const codes = to_e2m1x4(quotient(x[0] << 16, from[0] << 16),
                                   quotient(x[0] & 0xFFFF0000u, from[0]),
                                   quotient(x[1] << 16, from[1] << 16),
                                   quotient(x[1] & 0xFFFF0000u, from[1]));
#else
  constexpr uint32_t kLargest = 0x41404140u;  // 12, twice a quotient that has the largest code
  constexpr uint32_t kHalves = 0x3F003F00u, kQuarters = 0x3E803E80u;
  constexpr uint32_t k128 = 0x43004300u, k130 = 0x43024302u, k132 = 0x43044304u;
  uint32_t const large = high_halves(inverse, inverse), small = low_halves(inverse, inverse);
  uint32_t sums[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t const rest = fma_pair(x[i], small, kMinusZeros);
    uint32_t const twice = min_pair(fma_pair(x[i], large, rest), kLargest);
    sums[i] = min_pair(min_pair(fma_pair(twice, kOnes, k128), fma_pair(twice, kHalves, k130)),
                       fma_pair(twice, kQuarters, k132));
  }
  // Bytes of values 0, 2, 1, 3.
  uint32_t const signs =
      permute(value.signed_values[0], value.signed_values[1], 0xFBD9u) & 0x08080808u;
  uint32_t const bytes = permute(sums[0], sums[1], 0x6240u) | signs;
  uint32_t const codes = (bytes | (bytes >> 12)) & 0xFFFFu;
#endif
  return inverse == 0u ? 0u : codes;
}

}  // namespace fastwan
