// What the cross-attention asks of a multiprocessor, the same on every GPU from 8.0 on and on the host.
#pragma once

#include "fp4.cuh"

#ifdef FASTWAN_HOST_EMULATION
#include "glue_emulation.h"
#endif

namespace fastwan {

// d += a b for one m16n8k16 with bf16 operands and fp32 sums.
__device__ __forceinline__ void mma_bf16(float (&d)[4], uint32_t const (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::mma_bf16(d, a, b0, b1);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory. Lane i names row i % 8 of matrix i / 8
// and gets of each matrix the two neighbours 2 (lane % 4) of row lane / 4; transposed, of column
// lane / 4.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], uint4 const* row) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::load_matrices(out, row, kTransposed);
#else
  auto const address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

// 16 bytes on their way to shared memory.
__device__ __forceinline__ void copy_async(uint4* to, uint4 const* from) {
#ifdef FASTWAN_HOST_EMULATION
  *to = *from;
#else
  auto const address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#endif
}

// Until this thread's copies have arrived.
__device__ __forceinline__ void wait_for_copies() {
#ifndef FASTWAN_HOST_EMULATION
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

__device__ __forceinline__ float power_of_two(float exponent) {
#ifdef FASTWAN_HOST_EMULATION
  return std::exp2(exponent);
#else
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
  return power;
#endif
}

}  // namespace fastwan
