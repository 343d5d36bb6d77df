// Rows of bf16 as FP4 codes and e4m3 scales, with or without bias and GELU in front.
//
// A thread owns a group of 16 neighbours, and after it the same columns of later rows, so that it
// reads their bias once. The torch definition is plugins/glue_reference.py.
#pragma once

#include "gelu.cuh"
#include "group.cuh"

namespace fastwan {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kGroupPairs = kGroup / 2;
constexpr int kBlocks = 6, kGeluBlocks = 4;  // at a time on a multiprocessor

struct QuantizeArguments {
  uint16_t const* x;     // [rows, columns] bf16
  uint16_t const* bias;  // [columns] bf16, read with GELU only
  uint8_t* codes;
  uint8_t* scales;
  uint32_t groups;      // of all rows
  uint32_t row_groups;  // columns / 16
  uint32_t step;        // groups that all threads hold at a time, whole rows
  float const* factor;  // of x with GELU, [1], or null
};

// Whole rows, as many as the threads hold that run at the same time, but one at least.
inline uint32_t quantize_step(uint32_t row_groups, bool gelu, int processors) {
  int const blocks = processors * (gelu ? kGeluBlocks : kBlocks);
  auto const threads = static_cast<uint32_t>(blocks * kThreads);
  uint32_t const rows = threads / row_groups;
  return (rows == 0 ? 1 : rows) * row_groups;
}

inline int64_t quantize_blocks(QuantizeArguments const& p) {
  return (int64_t{p.step < p.groups ? p.step : p.groups} + kThreads - 1) / kThreads;
}

struct Pairs {
  uint32_t x[kGroupPairs];
};

__device__ __forceinline__ Pairs load_group(uint16_t const* from) {
  auto const* packed = reinterpret_cast<uint4 const*>(from);
  uint4 const a = packed[0], b = packed[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

template <bool kGelu>
__global__ void __launch_bounds__(kThreads, kGelu ? kGeluBlocks : kBlocks)
    quantize_kernel(QuantizeArguments const p) {
  __shared__ uint32_t table[kGeluEntries];
  uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  Pairs next{}, bias{};
  bool const any = index < p.step && index < p.groups;
  if (any) {
    next = load_group(p.x + int64_t{index} * kGroup);
    if (kGelu) bias = load_group(p.bias + index % p.row_groups * kGroup);
  }
  if (kGelu) {
    for (int i = static_cast<int>(threadIdx.x); i < kGeluEntries; i += kThreads) {
      table[i] = gelu_entry(i);
    }
    __syncthreads();
  }
  if (!any) return;
  float const factor = kGelu ? factor_or_one(p.factor) : 1.0f;
  while (true) {
    Pairs value = next;
    uint32_t const later = index + p.step;
    bool const more = later < p.groups;
    // The next group is on its way while this one is computed.
    if (more) next = load_group(p.x + int64_t{later} * kGroup);
    Pairs magnitude;
    uint32_t largest = 0u;
#pragma unroll
    for (int i = 0; i < kGroupPairs; ++i) {
      if (kGelu) {
        value.x[i] = fma_pair(scale_pair(value.x[i], factor), kOnes, bias.x[i]);
        magnitude.x[i] = gelu_pair(table, value.x[i]);
      } else {
        magnitude.x[i] = value.x[i] & kMagnitudes;
      }
      largest = max_pair(largest, magnitude.x[i]);
    }
    largest = max_pair(largest, largest >> 16);
    GroupScale const scale = group_scale(bf16_to_float(largest & 0xFFFFu));
    uint32_t codes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes[i] = four_codes({{magnitude.x[2 * i], magnitude.x[2 * i + 1]},
                             {value.x[2 * i], value.x[2 * i + 1]}},
                            scale.inverse);
    }
    reinterpret_cast<uint2*>(p.codes)[index] =
        make_uint2(low_halves(codes[0], codes[1]), low_halves(codes[2], codes[3]));
    p.scales[index] = static_cast<uint8_t>(scale.code);
    if (!more) return;
    index = later;
  }
}

}  // namespace fastwan
