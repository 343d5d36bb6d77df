// The second half of a softmax over divided keys: the sums of the parts become rows of the output.
//
// Part i of a row has its maximum m_i, the sum l_i of exp2(c (s - m_i)) over its logits s, and the
// sum o_i of those times V. With m the largest m_i and w_i = exp2(c (m_i - m)), the row is
// (sum of w_i o_i) / (sum of w_i l_i), in fp32, parts in order.
#pragma once

#include "key_split.h"

namespace fastwan {

constexpr int kMergeColumns = 4;  // of a thread: a warp has a row

__device__ __forceinline__ float power_of_two(float exponent) {
#ifdef FASTWAN_HOST_EMULATION
  return std::exp2(exponent);
#else
  return exp2f(exponent);
#endif
}

// `slots` are those of the row's tile, one part after the other.
__device__ __forceinline__ void merge_parts(float const* slots, int parts, int row, int column,
                                            float c, float (&out)[kMergeColumns]) {
  constexpr int64_t kMaxima = FASTWAN_TILE * FASTWAN_HEAD_DIM;
  constexpr int64_t kSums = kMaxima + FASTWAN_TILE;
  float largest = slots[kMaxima + row];
  for (int part = 1; part < parts; ++part) {
    float const maximum = slots[part * kSlotFloats + kMaxima + row];
    largest = maximum > largest ? maximum : largest;
  }
  float sum = 0.0f;
  float values[kMergeColumns] = {};
  for (int part = 0; part < parts; ++part) {
    float const* const slot = slots + part * kSlotFloats;
    float const weight = power_of_two(c * (slot[kMaxima + row] - largest));
    sum += weight * slot[kSums + row];
#pragma unroll
    for (int i = 0; i < kMergeColumns; ++i) {
      values[i] += weight * slot[row * FASTWAN_HEAD_DIM + column + i];
    }
  }
  float const inverse = sum == 0.0f || sum != sum ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int i = 0; i < kMergeColumns; ++i) out[i] = values[i] * inverse;
}

}  // namespace fastwan
