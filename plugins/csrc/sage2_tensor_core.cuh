// What SageAttention2++ asks of a multiprocessor: MMAs on int8, e4m3 and fp16, and packing to e4m3.
//
// The same on the host, where a warp's threads exchange operands. Shared memory is addressed with 32
// bits, so that the address of each load is one register and a constant.
#pragma once

#include "tensor_core.cuh"

#ifdef FASTWAN_HOST_EMULATION
#include "sage2_emulation.h"
#endif

namespace fastwan::sage2 {

#ifdef FASTWAN_HOST_EMULATION
using Shared = uint8_t*;
#else
using Shared = uint32_t;
#endif

// Address of something in shared memory, in bytes.
__device__ __forceinline__ Shared shared_address(void* pointer) {
#ifdef FASTWAN_HOST_EMULATION
  return static_cast<uint8_t*>(pointer);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#endif
}

// The address with some bits turned over: another piece of the same swizzled row.
__device__ __forceinline__ Shared turned_over(Shared address, uint32_t bits) {
#ifdef FASTWAN_HOST_EMULATION
  return reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(address) ^ bits);
#else
  return address ^ bits;
#endif
}

// Four 8 x 8 matrices of 16-bit numbers, as `load_matrices` of tensor_core.cuh.
__device__ __forceinline__ void load_matrices_at(uint32_t (&out)[4], Shared row) {
#ifdef FASTWAN_HOST_EMULATION
  fastwan::emulation::load_matrices(out, reinterpret_cast<uint4 const*>(row), false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
#endif
}

// 16 bytes on their way to shared memory.
__device__ __forceinline__ void copy_async_to(Shared to, uint8_t const* from) {
#ifdef FASTWAN_HOST_EMULATION
  for (int i = 0; i < 16; ++i) to[i] = from[i];
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#endif
}

// A barrier in shared memory that completes a phase with every `count` arrivals.
__device__ __forceinline__ void initialize_barrier(Shared barrier, int count) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::initialize_barrier(barrier, count);
#else
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
#endif
}

__device__ __forceinline__ void arrive(Shared barrier) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::arrive(barrier);
#else
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.shared.b64 state, [%0];\n"
      "}" ::"r"(barrier)
      : "memory");
#endif
}

// Arrives when the copies that this thread has begun are here.
__device__ __forceinline__ void arrive_with_copies(Shared barrier) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::arrive(barrier);
#else
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

// Until the phase of that number, counted from 0, is complete; the one before it is.
__device__ __forceinline__ void wait_for_phase(Shared barrier, int phase) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::wait_for_phase(barrier, phase);
#else
#if __CUDA_ARCH__ >= 900
#define FASTWAN_WAIT "mbarrier.try_wait.parity.shared.b64"  // sleeps a while
#else
#define FASTWAN_WAIT "mbarrier.test_wait.parity.shared.b64"
#endif
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "again:\n" FASTWAN_WAIT
      " complete, [%0], %1;\n"
      "@complete bra done;\n"
      "bra again;\n"
      "done:\n"
      "}" ::"r"(barrier),
      "r"(phase & 1)
      : "memory");
#undef FASTWAN_WAIT
#endif
}

__device__ __forceinline__ void warp_barrier() {
#ifdef FASTWAN_HOST_EMULATION
  emulation::finish();
#else
  __syncwarp();
#endif
}

// 1 / value, to a unit in the last place.
__device__ __forceinline__ float fast_reciprocal(float value) {
#ifdef FASTWAN_HOST_EMULATION
  return 1.0f / value;
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#endif
}

// d = a b + c for one m16n8k32 on int8 with int32 sums.
__device__ __forceinline__ void mma_int8(uint32_t (&d)[4], uint32_t const (&a)[4], uint32_t b0,
                                         uint32_t b1, uint32_t const (&c)[4]) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::mma_int8(d, a, b0, b1, c);
#else
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]),
        "r"(c[2]), "r"(c[3]));
#endif
}

// d += a b for one m16n8k32 on e4m3 with fp16 sums.
__device__ __forceinline__ void mma_e4m3(uint32_t (&d)[2], uint32_t const (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::mma_e4m3(d, a, b0, b1);
#elif __CUDA_ARCH__ >= 890
  asm("mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16 "
      "{%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// d += a b for one m16n8k16 on fp16 with fp16 sums.
__device__ __forceinline__ void mma_half(uint32_t (&d)[2], uint32_t const (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#ifdef FASTWAN_HOST_EMULATION
  emulation::mma_half(d, a, b0, b1);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 "
      "{%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// e4m3 codes of four values that are not negative, first in the lowest byte.
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
#if FASTWAN_HAS_E4M3
  uint32_t packed;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}"
      : "=r"(packed)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return packed;
#else
  return to_e4m3(a) | (to_e4m3(b) << 8) | (to_e4m3(c) << 16) | (to_e4m3(d) << 24);
#endif
}

// Two values rounded to fp16, `low` in the low half.
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
#ifdef FASTWAN_HOST_EMULATION
  return fastwan::emulation::to_half(low) | (fastwan::emulation::to_half(high) << 16);
#else
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#endif
}

// The two fp16 numbers of a register.
__device__ __forceinline__ float2 unpack_half(uint32_t pair) {
#ifdef FASTWAN_HOST_EMULATION
  return make_float2(static_cast<float>(fastwan::emulation::from_half(pair & 0xFFFFu)),
                     static_cast<float>(fastwan::emulation::from_half(pair >> 16)));
#else
  float2 values;
  asm("{\n"
      ".reg .f16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n"
      "}"
      : "=f"(values.x), "=f"(values.y)
      : "r"(pair));
  return values;
#endif
}

}  // namespace fastwan::sage2
