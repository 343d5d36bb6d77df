// The loop's small kernels: weighted sums of a sampler step, and casts. Plain loops over elements:
// a step moves a few tens of megabytes here, and some hundreds of gigabytes elsewhere.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "fastwan_plugins.h"

namespace fastwan {

struct CombineArguments {
  fastwan_combine_desc desc;
  void const* terms[FASTWAN_MAX_TERMS];
  float* outputs[FASTWAN_MAX_SUMS];
};

__device__ __forceinline__ float load_element(void const* from, uint32_t dtype, int64_t index) {
  switch (dtype) {
    case FASTWAN_BFLOAT16:
      return __bfloat162float(static_cast<__nv_bfloat16 const*>(from)[index]);
    case FASTWAN_FLOAT16:
      return __half2float(static_cast<__half const*>(from)[index]);
    default:
      return static_cast<float const*>(from)[index];
  }
}

__device__ __forceinline__ void store_element(void* to, uint32_t dtype, int64_t index,
                                              float value) {
  switch (dtype) {
    case FASTWAN_BFLOAT16:
      static_cast<__nv_bfloat16*>(to)[index] = __float2bfloat16_rn(value);
      break;
    case FASTWAN_FLOAT16:
      static_cast<__half*>(to)[index] = __float2half_rn(value);
      break;
    default:
      static_cast<float*>(to)[index] = value;
  }
}

// Products and sums rounded one by one, as numpy does it: no fused multiply-add.
__global__ void combine_kernel(__grid_constant__ CombineArguments const arguments) {
  int64_t const stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < arguments.desc.elements;
       i += stride) {
    // Every sum is complete before one is stored: an output may be one of the terms.
    double totals[FASTWAN_MAX_SUMS] = {};
#pragma unroll
    for (uint32_t s = 0; s < FASTWAN_MAX_SUMS; ++s) {
      if (s >= arguments.desc.num_sums) break;
      for (uint32_t k = 0; k < arguments.desc.counts[s]; ++k) {
        uint32_t const term = arguments.desc.indices[s][k];
        double const value = load_element(arguments.terms[term], arguments.desc.dtypes[term], i);
        totals[s] = __dadd_rn(totals[s], __dmul_rn(arguments.desc.weights[s][k], value));
      }
    }
#pragma unroll
    for (uint32_t s = 0; s < FASTWAN_MAX_SUMS; ++s) {
      if (s < arguments.desc.num_sums) arguments.outputs[s][i] = __double2float_rn(totals[s]);
    }
  }
}

__global__ void cast_kernel(fastwan_cast_desc const desc, void const* source, void* target) {
  int64_t const elements = desc.rows * desc.columns;
  int64_t const stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < elements; i += stride) {
    int64_t const from = i / desc.columns * desc.pitch + i % desc.columns;
    store_element(target, desc.target_dtype, i, load_element(source, desc.source_dtype, from));
  }
}

}  // namespace fastwan
