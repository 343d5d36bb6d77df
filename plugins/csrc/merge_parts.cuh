// The second half of a softmax over divided keys: the sums of the parts become rows of the output.
//
// Part i of a row has its maximum m_i, the sum l_i of exp2(c (s - m_i)) over its logits s, and the
// sum o_i of those times V. With m the largest m_i and w_i = exp2(c (m_i - m)), the row is
// (sum of w_i o_i) / (sum of w_i l_i), in fp32, parts in order.
#pragma once

#include "fp4.cuh"
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

// Where the merged rows go.
struct MergeArguments {
  float const* slots;
  uint16_t* out;  // [B, L, C] bf16
  int first_tile, query_tiles, heads, parts, num_tokens, length;
  float c;  // of the logits, in base 2
};

// Four columns of a row of a tile, of which `divided` are divided before. Rows behind the tokens
// are left alone: the prologue has cleared them.
__device__ __forceinline__ void merge_row(MergeArguments const& arguments, int divided, int row,
                                          int column) {
  int const tile = arguments.first_tile + divided;
  int const token = tile % arguments.query_tiles * FASTWAN_TILE + row;
  if (token >= arguments.num_tokens) return;
  int const head = tile / arguments.query_tiles % arguments.heads;
  int const batch = tile / arguments.query_tiles / arguments.heads;
  float values[kMergeColumns];
  merge_parts(arguments.slots + static_cast<int64_t>(divided) * arguments.parts * kSlotFloats,
              arguments.parts, row, column, arguments.c, values);
  int64_t const line = int64_t{batch} * arguments.length + token;
  auto* const at = arguments.out + (line * arguments.heads + head) * FASTWAN_HEAD_DIM + column;
  *reinterpret_cast<uint2*>(at) =
      make_uint2(pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]));
}

}  // namespace fastwan
