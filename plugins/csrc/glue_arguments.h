// From the C interface of the glue to the arguments of its kernels, on the GPU and on the host.
#pragma once

#include "cross_attention.cuh"
#include "glue.h"
#include "quantize.cuh"
#include "residual_norm.cuh"

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
    case FASTWAN_GLUE_RESIDUAL_NORM_QUANTIZE:
      return {(desc.flags & FASTWAN_GLUE_GATE) != 0 ? 6 : 5, 3};
    case FASTWAN_GLUE_CROSS_ATTENTION:
      return {7, 2};
    default:
      return {0, 0};
  }
}

inline QuantizeArguments quantize_arguments(fastwan_glue_desc const& desc,
                                            void const* const* inputs, void* const* outputs) {
  bool const gelu = desc.kind == FASTWAN_GLUE_GELU_QUANTIZE;
  auto const rows = static_cast<uint32_t>(desc.rows);
  auto const row_groups = static_cast<uint32_t>(desc.columns / kGroup);
  return {static_cast<uint16_t const*>(inputs[0]),
          gelu ? static_cast<uint16_t const*>(inputs[1]) : nullptr,
          static_cast<uint8_t*>(outputs[0]),
          static_cast<uint8_t*>(outputs[1]),
          rows * row_groups,
          row_groups};
}

inline NormArguments norm_arguments(fastwan_glue_desc const& desc, void const* const* inputs,
                                    void* const* outputs) {
  bool const gated = (desc.flags & FASTWAN_GLUE_GATE) != 0;
  void const* const* modulation = inputs + (gated ? 4 : 3);
  return {static_cast<uint16_t const*>(inputs[0]),
          static_cast<uint16_t const*>(inputs[1]),
          static_cast<uint16_t const*>(inputs[2]),
          gated ? static_cast<float const*>(inputs[3]) : nullptr,
          static_cast<float const*>(modulation[0]),
          static_cast<float const*>(modulation[1]),
          static_cast<uint16_t*>(outputs[0]),
          static_cast<uint8_t*>(outputs[1]),
          static_cast<uint8_t*>(outputs[2]),
          desc.rows,
          desc.columns / kPart,
          desc.eps,
          (desc.flags & FASTWAN_GLUE_ADD_ONE) != 0};
}

inline CrossArguments cross_arguments(fastwan_glue_desc const& desc, void const* const* inputs,
                                      void* const* outputs) {
  return {static_cast<uint16_t const*>(inputs[0]),
          static_cast<uint16_t const*>(inputs[1]),
          static_cast<uint16_t const*>(inputs[2]),
          static_cast<uint16_t const*>(inputs[3]),
          static_cast<uint16_t const*>(inputs[4]),
          static_cast<float const*>(inputs[5]),
          static_cast<int const*>(inputs[6]),
          static_cast<uint8_t*>(outputs[0]),
          static_cast<uint8_t*>(outputs[1]),
          desc.rows,
          desc.columns / kHeadDim,
          desc.keys,
          desc.eps,
          desc.softmax_scale};
}

}  // namespace fastwan
