// Remembers why a TMA descriptor could not be made: CuTe only asserts that it could, and a release
// build drops the assertion.
//
// Included before any header of CuTe, by every file that makes descriptors: what the linker merges
// must be the same in all of them.
#pragma once

#include <cuda.h>
#include <cutlass/cuda_host_adapter.hpp>

#include "layout.h"

#if FASTWAN_EMULATED
#include "emulated_tensor_map.h"
#define FASTWAN_DRIVER_CALL(function) ::fastwan::bytewise_##function
#else
#define FASTWAN_DRIVER_CALL(function) ::cutlass::call_##function
#endif

namespace fastwan {

// First failure to make a TMA descriptor on this thread since it was reset.
inline thread_local CUresult tensor_map_error = CUDA_SUCCESS;

inline CUresult record(CUresult result) {
  if (tensor_map_error == CUDA_SUCCESS) tensor_map_error = result;
  return result;
}

}  // namespace fastwan

#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(function) \
  ([](auto... arguments) { return ::fastwan::record(FASTWAN_DRIVER_CALL(function)(arguments...)); })
