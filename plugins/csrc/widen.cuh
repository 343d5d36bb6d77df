// The operands of the FP4 MMA as fp16, without an error.
//
// An e2m1 value has 2 significant bits and its ue4m3 block scale 4, so their product has at most 6;
// it lies within 2^-10 .. 2688, or is 0. fp16 holds every such number.
#pragma once

#include "fp4.cuh"

#ifdef FASTWAN_HOST_EMULATION
#include "host_tensor_core.h"
#endif

namespace fastwan {

// Two pairs of fp16 numbers, each pair as the MMA takes it.
struct HalfPairs {
  uint32_t low, high;
};

// Four e4m3 codes, first in the lowest byte.
__device__ __forceinline__ HalfPairs from_e4m3x4(uint32_t codes) {
#ifdef FASTWAN_HOST_EMULATION
  return {emulation::half2_of_e4m3x2(codes & 0xFFFFu), emulation::half2_of_e4m3x2(codes >> 16)};
#else
  HalfPairs pairs;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n"
      "}"
      : "=r"(pairs.low), "=r"(pairs.high)
      : "r"(codes));
  return pairs;
#endif
}

__device__ __forceinline__ uint32_t multiply_half2(uint32_t a, uint32_t b) {
#ifdef FASTWAN_HOST_EMULATION
  return emulation::half2_product(a, b);
#else
  uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
#endif
}

// Block scales of one row for the groups that a thread holds: `select` takes their two bytes twice
// each. Both are multiplied by 64, which `widen` needs.
__device__ __forceinline__ HalfPairs widen_scales(uint32_t codes, uint32_t select) {
  constexpr uint32_t kSixtyFour = 0x54005400u;
  HalfPairs const scales = from_e4m3x4(__byte_perm(codes, 0u, select));
  return {multiply_half2(scales.low, kSixtyFour), multiply_half2(scales.high, kSixtyFour)};
}

// Eight e2m1 codes times a scale of `widen_scales`: the even ones first, then the odd ones.
//
// Sign, exponent and mantissa of a code are put where e4m3 has its sign, its two lower exponent
// bits and its upper mantissa bit: that reads as the value / 64, the smallest one included, because
// both formats are subnormal there.
__device__ __forceinline__ void widen(uint32_t codes, uint32_t scale, uint32_t (&out)[4]) {
  constexpr uint32_t kSign = 0x80808080u, kMagnitude = 0x1C1C1C1Cu;
  HalfPairs const even =
      from_e4m3x4(((codes << 4) & kSign) | ((codes << 2) & kMagnitude));
  HalfPairs const odd = from_e4m3x4((codes & kSign) | ((codes >> 2) & kMagnitude));
  out[0] = multiply_half2(even.low, scale);
  out[1] = multiply_half2(even.high, scale);
  out[2] = multiply_half2(odd.low, scale);
  out[3] = multiply_half2(odd.high, scale);
}

}  // namespace fastwan
