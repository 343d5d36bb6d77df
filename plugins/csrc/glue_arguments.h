// From the C interface of the glue to the arguments of its kernels, on the GPU and on the host.
#pragma once

#include "glue.h"
#include "quantize.cuh"

namespace fastwan {

// Tensors of a node; none for an unknown kind.
struct GlueCounts {
  int inputs, outputs;
};

inline GlueCounts glue_counts(fastwan_glue_desc const& desc) {
  switch (desc.kind) {
    case FASTWAN_GLUE_GELU_QUANTIZE:
      return {2, 2};
    case FASTWAN_GLUE_QUANTIZE:
      return {1, 2};
    default:
      return {0, 0};
  }
}

inline QuantizeArguments quantize_arguments(fastwan_glue_desc const& desc,
                                            void const* const* inputs, void* const* outputs) {
  bool const gelu = desc.kind == FASTWAN_GLUE_GELU_QUANTIZE;
  int const row_groups = desc.columns / kGroup;
  return {static_cast<uint16_t const*>(inputs[0]),
          gelu ? static_cast<uint16_t const*>(inputs[1]) : nullptr,
          static_cast<uint8_t*>(outputs[0]),
          static_cast<uint8_t*>(outputs[1]),
          int64_t{desc.rows} * row_groups,
          row_groups};
}

}  // namespace fastwan
