// Arithmetic on two bf16 numbers in one register, the same result on every device and on the host.
#pragma once

#include "fp4.cuh"

#ifdef FASTWAN_HOST_EMULATION
#include "glue_emulation.h"
#endif

namespace fastwan {

constexpr uint32_t kMagnitudes = 0x7FFF7FFFu;  // both without their signs
constexpr uint32_t kMinusZeros = 0x80008000u;  // added to a product, changes none
constexpr uint32_t kOnes = 0x3F803F80u;

// a b + c, rounded once.
__device__ __forceinline__ uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
#ifdef FASTWAN_HOST_EMULATION
  return emulation::fma_pair(a, b, c);
#else
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
#endif
}

// The larger or smaller of each two; of a number and NaN, the number.
__device__ __forceinline__ uint32_t max_pair(uint32_t a, uint32_t b) {
#ifdef FASTWAN_HOST_EMULATION
  return emulation::larger_pair(a, b);
#else
  uint32_t result;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#endif
}

__device__ __forceinline__ uint32_t min_pair(uint32_t a, uint32_t b) {
#ifdef FASTWAN_HOST_EMULATION
  return emulation::smaller_pair(a, b);
#else
  uint32_t result;
  asm("min.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#endif
}

// Two values times an fp32 factor, rounded to bf16.
__device__ __forceinline__ uint32_t scale_pair(uint32_t x, float factor) {
  return pack_bf16(__fmul_rn(bf16_to_float(x & 0xFFFFu), factor),
                   __fmul_rn(__uint_as_float(x & 0xFFFF0000u), factor));
}

// The factor of a GEMM's product, 1 without one: bf16(y * 1) is y.
__device__ __forceinline__ float factor_or_one(float const* factor) {
  return factor == nullptr ? 1.0f : *factor;
}

// Four of the bytes of `low` and `high`; a nibble of `select` with its top bit set takes a byte's
// sign eight times, which __byte_perm does not.
__device__ __forceinline__ uint32_t permute(uint32_t low, uint32_t high, uint32_t select) {
#ifdef FASTWAN_HOST_EMULATION
  return emulation::permute(low, high, select);
#else
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(select));
  return result;
#endif
}

// The low halves of two registers, and their high halves.
__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) {
  return permute(a, b, 0x5410u);
}

__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) {
  return permute(a, b, 0x7632u);
}

// 1 / x within a unit in the last place.
__device__ __forceinline__ float approximate_reciprocal(float x) {
#ifdef FASTWAN_HOST_EMULATION
  return 1.0f / x;
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

}  // namespace fastwan
