// Groups of 16 values that four neighbouring lanes hold, quantised four groups at a time.
//
// Each lane has four values of each group. It finds the scale of one of the groups for all four
// lanes, and ends with all codes of that group.
#pragma once

#include "group.cuh"

namespace fastwan {

constexpr int kQuad = 4;
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// Largest magnitude of group lane % 4, as fp32, of the largest two that this lane has of each.
__device__ __forceinline__ float quad_largest(uint32_t const (&largest)[kQuad], int lane) {
  uint32_t const first = max_pair(low_halves(largest[0], largest[1]),
                                  high_halves(largest[0], largest[1]));
  uint32_t const second = max_pair(low_halves(largest[2], largest[3]),
                                   high_halves(largest[2], largest[3]));
  bool const upper = (lane & 2) != 0;
  uint32_t mine = upper ? second : first;
  mine = max_pair(mine, __shfl_xor_sync(kWholeWarp, upper ? first : second, 2));
  mine = max_pair(mine, __shfl_xor_sync(kWholeWarp, mine, 1));
  return __uint_as_float((lane & 1) != 0 ? mine & 0xFFFF0000u : mine << 16);
}

// From 16 bits of each group to all 64 of group lane % 4, those of the quad's first lane lowest.
__device__ __forceinline__ uint2 quad_transposed(uint32_t const (&bits)[kQuad], int lane) {
  bool const upper = (lane & 2) != 0, odd = (lane & 1) != 0;
  uint32_t const first = low_halves(bits[0], bits[1]), second = low_halves(bits[2], bits[3]);
  uint32_t const mine = upper ? second : first;  // of two groups
  uint32_t const other = __shfl_xor_sync(kWholeWarp, upper ? first : second, 2);
  uint32_t const kept = odd ? high_halves(mine, other) : low_halves(mine, other);
  uint32_t const given = odd ? low_halves(mine, other) : high_halves(mine, other);
  uint32_t const received = __shfl_xor_sync(kWholeWarp, given, 1);
  // Both hold two lanes' bits: of this half of the quad low, of the other one high.
  uint32_t const even_lane = odd ? received : kept, odd_lane = odd ? kept : received;
  uint32_t const here = low_halves(even_lane, odd_lane), there = high_halves(even_lane, odd_lane);
  return upper ? make_uint2(there, here) : make_uint2(here, there);
}

struct QuadGroup {
  uint32_t scale;  // code of the scale of group lane % 4
  uint2 codes;     // 16 bits of each lane of the quad
};

// `pairs` are two pairs of each group.
__device__ __forceinline__ QuadGroup quantize_quad(uint32_t const (&pairs)[kQuad][2], int lane) {
  uint32_t largest[kQuad];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    largest[i] = max_pair(pairs[i][0] & kMagnitudes, pairs[i][1] & kMagnitudes);
  }
  GroupScale const scale = group_scale(quad_largest(largest, lane));
  uint32_t bits[kQuad];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    uint32_t const inverse = __shfl_sync(kWholeWarp, scale.inverse, i, kQuad);
    bits[i] = four_codes(four_values(pairs[i][0], pairs[i][1]), inverse);
  }
  return {scale.code, quad_transposed(bits, lane)};
}

}  // namespace fastwan
