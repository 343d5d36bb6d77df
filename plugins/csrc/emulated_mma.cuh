// The FP4 MMA of compute capability 12.x on tensor cores that have none: four fp16 MMAs.
//
// A warp multiplies A [16, 64] by B [32, 64] transposed, both e2m1 with a ue4m3 scale for every 16
// values along k, into fp32. Fragments are those of
// mma.m16n8k64.block_scale.scale_vec::4X...e2m1.e2m1.f32.ue4m3, four of them side by side. With
// q = lane / 4 and t = lane % 4, a thread holds
//   a[i]       row q + 8 (i % 2), eight values from k = 8 t + 32 (i / 2)
//   b[2j + h]  column q + 8 j, eight values from k = 8 t + 32 h
//   scale_a    four scales of row q + 8 (t % 2)
//   scale_b    four scales of column q + 8 t
//   d[2j + c], d[8 + 2j + c]  rows q and q + 8, column 2 t + 8 j + c
// m16n8k16 gives a thread the same k of A and B, whatever k that is, so the eight values of a
// register go through four of them, two at a time.
#pragma once

#include "widen.cuh"

namespace fastwan {

// A in fp16.
struct HalfRows {
  uint32_t pairs[4][4];  // register, step
};

// One m16n8k16 with fp16 operands, added to four fp32 sums.
__device__ __forceinline__ void half_mma(float& d0, float& d1, float& d2, float& d3,
                                         HalfRows const& a, int step, uint32_t b0, uint32_t b1) {
#ifdef FASTWAN_HOST_EMULATION
  float* d[4] = {&d0, &d1, &d2, &d3};
  emulation::mma_m16n8k16(
      d, {a.pairs[0][step], a.pairs[1][step], a.pairs[2][step], a.pairs[3][step]}, {b0, b1});
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(a.pairs[0][step]), "r"(a.pairs[1][step]), "r"(a.pairs[2][step]),
        "r"(a.pairs[3][step]), "r"(b0), "r"(b1));
#endif
}

// The two bytes that `widen_scales` takes: values k = 8 t .. lie in group t / 2, those from
// k = 8 t + 32 in the group two further.
__device__ __forceinline__ uint32_t own_groups() {
  return (threadIdx.x & 2u) != 0u ? 0x3311u : 0x2200u;
}

// A, to be multiplied by any number of B. `a(i)` is a register as above.
template <class Codes>
__device__ __forceinline__ HalfRows widen_rows(Codes const& a, uint32_t scale_a) {
  HalfRows rows;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    HalfPairs const scale =
        widen_scales(__shfl_sync(0xFFFFFFFFu, scale_a, i, 4), own_groups());
    widen(a(i), scale.low, rows.pairs[i]);
    widen(a(i + 2), scale.high, rows.pairs[i + 2]);
  }
  return rows;
}

// d += A B^T. `d(i)` and `b(i)` are registers as above.
//
// The tensor cores of 9.0 truncate what they add to a running sum. With kApart the 64 products of an
// element are summed from zero and then added to d in fp32, for a kernel that leaves its sum over
// all keys to the MMA: after 512 tiles of them it would be 3.1e-4 off.
template <bool kApart, class Sums, class Codes>
__device__ __forceinline__ void emulated_mma(Sums& d, HalfRows const& a, Codes const& b,
                                             uint32_t scale_b) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    HalfPairs const scale =
        widen_scales(__shfl_sync(0xFFFFFFFFu, scale_b, j, 4), own_groups());
    uint32_t first[4], second[4];
    widen(b(2 * j), scale.low, first);
    widen(b(2 * j + 1), scale.high, second);
    float apart[4] = {};
    auto sum = [&](int i, int place) -> float& {
      if constexpr (kApart) return apart[i];
      return d(place);
    };
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      half_mma(sum(0, 2 * j), sum(1, 2 * j + 1), sum(2, 8 + 2 * j), sum(3, 9 + 2 * j), a, step,
               first[step], second[step]);
    }
    if constexpr (kApart) {
      d(2 * j) += apart[0];
      d(2 * j + 1) += apart[1];
      d(8 + 2 * j) += apart[2];
      d(9 + 2 * j) += apart[3];
    }
  }
}

}  // namespace fastwan
