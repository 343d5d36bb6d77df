// Rows of bf16 as FP4 codes and e4m3 scales, with or without bias and GELU in front.
//
// A thread owns a group of 16 neighbours. The torch definition is plugins/glue_reference.py.
#pragma once

#include "fp4.cuh"

#ifdef FASTWAN_HOST_EMULATION
#include "glue_emulation.h"
#endif

namespace fastwan {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kGroup = 16;  // values that share a scale

__device__ __forceinline__ void unpack_eight(uint4 packed, float* out) {
  uint32_t const words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = bf16_to_float(words[i] & 0xFFFFu);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}

__device__ __forceinline__ void load_group(uint16_t const* from, float (&out)[kGroup]) {
  auto const* packed = reinterpret_cast<uint4 const*>(from);
  unpack_eight(packed[0], out);
  unpack_eight(packed[1], out + kGroup / 2);
}

// The factor of a GEMM's product, 1 without one: bf16(y * 1) is y.
__device__ __forceinline__ float factor_or_one(float const* factor) {
  return factor == nullptr ? 1.0f : *factor;
}

// Scale of 16 values, with a reciprocal that is never below 1 / scale.
//
// Multiplied by it and rounded towards zero, a bf16 value has the code of value / scale: the sign
// of the error is such that a quotient which is a tie stays one. With the nearest reciprocal and
// product, 1.25 * 15 / 15 is above 1.25. A test tries all scales and values.
__device__ __forceinline__ BlockScale divisor(float amax) {
  BlockScale scale = block_scale(amax);
  if (__fmaf_rn(scale.inverse, from_e4m3(scale.code), -1.0f) < 0.0f) {
    scale.inverse = __uint_as_float(__float_as_uint(scale.inverse) + 1u);
  }
  return scale;
}

// Four codes of values that share a scale. Where the scale is 0 there is nothing to divide by.
__device__ __forceinline__ uint32_t four_codes(float a, float b, float c, float d,
                                               BlockScale const& scale) {
  if (scale.code == 0u) return 0u;
  return to_e2m1x4(__fmul_rz(a, scale.inverse), __fmul_rz(b, scale.inverse),
                   __fmul_rz(c, scale.inverse), __fmul_rz(d, scale.inverse));
}

// tanh GELU, x / (1 + exp(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3).
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

struct QuantizeArguments {
  uint16_t const* x;     // [rows, columns] bf16
  uint16_t const* bias;  // [columns] bf16, read with GELU only
  uint8_t* codes;
  uint8_t* scales;
  uint32_t groups;      // of all rows
  uint32_t row_groups;  // columns / 16
  float const* factor;  // of x with GELU, [1], or null
};

inline int64_t quantize_blocks(QuantizeArguments const& p) {
  return (int64_t{p.groups} + kThreads - 1) / kThreads;
}

template <bool kGelu>
__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeArguments const p) {
  uint32_t const index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= p.groups) return;
  float x[kGroup];
  load_group(p.x + int64_t{index} * kGroup, x);
  if (kGelu) {
    auto const* halves = reinterpret_cast<uint4 const*>(p.bias + index % p.row_groups * kGroup);
    float const factor = factor_or_one(p.factor);
#pragma unroll
    for (int i = 0; i < kGroup; i += 2) {
      float bias[kGroup / 2];
      unpack_eight(halves[i / 8], bias);
      float2 const y = round_bf16(__fmul_rn(x[i], factor), __fmul_rn(x[i + 1], factor));
      float2 const sum = round_bf16(__fadd_rn(y.x, bias[i % 8]), __fadd_rn(y.y, bias[i % 8 + 1]));
      float2 const value = round_bf16(gelu_tanh(sum.x), gelu_tanh(sum.y));
      x[i] = value.x;
      x[i + 1] = value.y;
    }
  }
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) amax = fmaxf(amax, fabsf(x[i]));
  BlockScale const scale = divisor(amax);
  uint32_t const low = four_codes(x[0], x[1], x[2], x[3], scale) |
                       (four_codes(x[4], x[5], x[6], x[7], scale) << 16);
  uint32_t const high = four_codes(x[8], x[9], x[10], x[11], scale) |
                        (four_codes(x[12], x[13], x[14], x[15], scale) << 16);
  reinterpret_cast<uint2*>(p.codes)[index] = make_uint2(low, high);
  p.scales[index] = static_cast<uint8_t>(scale.code);
}

}  // namespace fastwan
