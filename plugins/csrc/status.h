// Status codes with a message for the calling thread.
#pragma once

#include <cuda_runtime_api.h>

#include "fastwan_plugins.h"

namespace fastwan {

// Remember `message` (printf format) for fastwan_last_error() and return `status`.
fastwan_status fail(fastwan_status status, char const* format, ...)
    __attribute__((format(printf, 2, 3)));

// FASTWAN_OK for cudaSuccess; otherwise a FASTWAN_CUDA_ERROR that names `what`.
inline fastwan_status check(cudaError_t error, char const* what) {
  return error == cudaSuccess
             ? FASTWAN_OK
             : fail(FASTWAN_CUDA_ERROR, "%s: %s", what, cudaGetErrorString(error));
}

}  // namespace fastwan
