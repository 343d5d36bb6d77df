// TMA descriptors of 4-bit numbers for a GPU that knows only bytes.
//
// Included by attention.cu when FASTWAN_EMULATED is 1, before any header of CuTe that makes one.
#pragma once

#include <cuda.h>
#include <cutlass/cuda_host_adapter.hpp>

#include <array>
#include <cstdint>

namespace fastwan {

// cuTensorMapEncodeTiled, with a tensor of 4-bit numbers described as bytes: half as many along the
// dimension that is contiguous, of the tensor and of the box. Bytes in shared memory are the same.
// Coordinates then count bytes: the kernel's are 0 for q and k, and v is laid out for it (layout.h).
inline CUresult bytewise_cuTensorMapEncodeTiled(
    CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
    cuuint64_t const* sizes, cuuint64_t const* strides, cuuint32_t const* box,
    cuuint32_t const* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
    CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  constexpr uint32_t kMostDimensions = 5;
  std::array<cuuint64_t, kMostDimensions> byte_sizes{};
  std::array<cuuint32_t, kMostDimensions> byte_box{};
  if (type == CU_TENSOR_MAP_DATA_TYPE_16U4_ALIGN8B && rank <= kMostDimensions) {
    type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
    for (uint32_t i = 0; i < rank; ++i) {
      byte_sizes[i] = i == 0 ? sizes[i] / 2 : sizes[i];
      byte_box[i] = i == 0 ? box[i] / 2 : box[i];
    }
    sizes = byte_sizes.data();
    box = byte_box.data();
  }
  return cutlass::call_cuTensorMapEncodeTiled(map, type, rank, address, sizes, strides, box, steps,
                                              interleave, swizzle, promotion, fill);
}

}  // namespace fastwan
