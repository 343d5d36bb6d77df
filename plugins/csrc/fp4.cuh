// Number conversions of the prologue, the same result on every device and on the host.
//
// Hardware instructions are used where they exist; elsewhere the bit pattern is rounded with
// integers. The torch definition is plugins/nvfp4.py.
#pragma once

#ifdef FASTWAN_HOST_EMULATION
#include "host_emulation.h"
#else
#include <cstdint>
#include <cuda_runtime.h>
#endif

namespace fastwan {

#if defined(__CUDA_ARCH_FEAT_SM120_ALL) || defined(__CUDA_ARCH_FEAT_SM121_ALL) || \
    defined(__CUDA_ARCH_FEAT_SM100_ALL)
#define FASTWAN_HAS_E2M1 1
#else
#define FASTWAN_HAS_E2M1 0
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define FASTWAN_HAS_E4M3 1
#else
#define FASTWAN_HAS_E4M3 0
#endif

__device__ __forceinline__ float bf16_to_float(uint32_t bits) {
  return __uint_as_float(bits << 16);
}

// Two floats rounded to bf16, `low` in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  uint32_t const a = __float_as_uint(low), b = __float_as_uint(high);
  return ((a + 0x7FFFu + ((a >> 16) & 1u)) >> 16) |
         ((b + 0x7FFFu + ((b >> 16) & 1u)) & 0xFFFF0000u);
#endif
}

// Two floats rounded to bf16, back in fp32.
__device__ __forceinline__ float2 round_bf16(float low, float high) {
  uint32_t const packed = pack_bf16(low, high);
  return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u));
}

// e4m3 code of a value that is not negative: nearest even, saturating at 448.
__device__ __forceinline__ uint32_t to_e4m3(float value) {
#if FASTWAN_HAS_E4M3
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(0.0f), "f"(value));
  return packed & 0xFFu;
#else
  if (value < 0.015625f) {  // subnormal: multiples of 2^-9; 8 of them are the smallest normal
    return static_cast<uint32_t>(__float2int_rn(value * 512.0f));
  }
  uint32_t const bits = __float_as_uint(value);
  uint32_t const code = ((bits + 0x7FFFFu + ((bits >> 20) & 1u)) >> 20) - (120u << 3);
  return code > 0x7Eu ? 0x7Eu : code;
#endif
}

// Value of an e4m3 code without a sign.
__device__ __forceinline__ float from_e4m3(uint32_t code) {
  return code < 8u ? static_cast<float>(code) * 0.001953125f
                   : __uint_as_float((code + (120u << 3)) << 20);
}

// e2m1 code of a value that is not negative, in the low four bits; above them lies anything.
//
// Let p be the value's power of two, at least 1. A multiple of p/2 is what e2m1 can hold there, and
// the fp32 sum value + p * 2^22 is rounded to one, to even on a tie: it lies in the low bits of the
// sum. Two codes for each power of two come from the sum's exponent, 22 bits higher. The 3 makes
// the exponent's bias a multiple of 16.
__device__ __forceinline__ uint32_t to_e2m1_unsigned(float value) {
  float const limited = fminf(value, 6.0f);
  float const power =
      fmaxf(__uint_as_float(__float_as_uint(limited) & 0x7F800000u), 1.0f);
  uint32_t const sum = __float_as_uint(__fmaf_rn(power, 4194304.0f + 3.0f, limited));
  return sum + (sum >> 22);
}

// Eight such codes, first in the lowest nibble.
__device__ __forceinline__ uint32_t to_e2m1x8_unsigned(float const (&values)[8]) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = (to_e2m1_unsigned(values[2 * i]) & 0xFu) |
               ((to_e2m1_unsigned(values[2 * i + 1]) << 4) & ~0xFu);
  }
  return __byte_perm(__byte_perm(pairs[0], pairs[1], 0x0040),
                     __byte_perm(pairs[2], pairs[3], 0x0040), 0x5410);
}

#if !FASTWAN_HAS_E2M1
// e2m1 code: nearest even, saturating at 6, sign kept.
__device__ __forceinline__ uint32_t to_e2m1(float value) {
  return (to_e2m1_unsigned(fabsf(value)) & 7u) | ((__float_as_uint(value) >> 28) & 8u);
}
#endif

// Four e2m1 codes, first in the lowest nibble.
__device__ __forceinline__ uint32_t to_e2m1x4(float a, float b, float c, float d) {
#if FASTWAN_HAS_E2M1
  uint32_t packed;
  asm("{\n"
      ".reg .b8 low, high;\n"
      ".reg .b16 pair;\n"
      "cvt.rn.satfinite.e2m1x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e2m1x2.f32 high, %4, %3;\n"
      "mov.b16 pair, {low, high};\n"
      "cvt.u32.u16 %0, pair;\n"
      "}"
      : "=r"(packed)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return packed;
#else
  return to_e2m1(a) | (to_e2m1(b) << 4) | (to_e2m1(c) << 8) | (to_e2m1(d) << 12);
#endif
}

// Scale of 16 values with the largest magnitude `amax`: the code, and 1 / its value (0 for 0).
struct BlockScale {
  uint32_t code;
  float inverse;
};

__device__ __forceinline__ BlockScale block_scale(float amax) {
  uint32_t const code = to_e4m3(__fdiv_rn(amax, 6.0f));
  return {code, code == 0u ? 0.0f : __frcp_rn(from_e4m3(code))};
}

}  // namespace fastwan
