// From the C interface of the glue to the arguments of its kernels, on the GPU and on the host.
#pragma once

#include "cross_attention.cuh"
#include "glue.h"
#include "quantize.cuh"
#include "residual_norm.cuh"

namespace fastwan {

// Whether a node is one of `residual_norm_kernel`.
inline bool has_layer_norm(fastwan_glue_desc const& desc) {
  return desc.kind == FASTWAN_GLUE_RESIDUAL_NORM_QUANTIZE ||
         desc.kind == FASTWAN_GLUE_NORM_QUANTIZE || desc.kind == FASTWAN_GLUE_RESIDUAL_NORM;
}

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
    case FASTWAN_GLUE_NORM_QUANTIZE:
      return {3, 2};
    case FASTWAN_GLUE_RESIDUAL_NORM:
      return {(desc.flags & FASTWAN_GLUE_GATE) != 0 ? 6 : 5, 1};
    default:
      return {0, 0};
  }
}

// Whether a node begins with the product of a GEMM.
inline bool reads_product(fastwan_glue_desc const& desc) {
  return desc.kind == FASTWAN_GLUE_GELU_QUANTIZE ||
         desc.kind == FASTWAN_GLUE_RESIDUAL_NORM_QUANTIZE ||
         desc.kind == FASTWAN_GLUE_RESIDUAL_NORM ||
         desc.kind == FASTWAN_GLUE_CROSS_ATTENTION;
}

// All inputs of a node, the factor of its product included.
inline int input_count(fastwan_glue_desc const& desc) {
  return glue_counts(desc).inputs + ((desc.flags & FASTWAN_GLUE_SCALE) != 0 ? 1 : 0);
}

// The factor of a node's product, or null.
inline float const* factor_of(fastwan_glue_desc const& desc, void const* const* inputs) {
  if ((desc.flags & FASTWAN_GLUE_SCALE) == 0) return nullptr;
  return static_cast<float const*>(inputs[glue_counts(desc).inputs]);
}

// `processors` are the multiprocessors that the threads are divided among.
inline QuantizeArguments quantize_arguments(fastwan_glue_desc const& desc,
                                            void const* const* inputs, void* const* outputs,
                                            int processors) {
  bool const gelu = desc.kind == FASTWAN_GLUE_GELU_QUANTIZE;
  auto const rows = static_cast<uint32_t>(desc.rows);
  auto const row_groups = static_cast<uint32_t>(desc.columns / kGroup);
  return {static_cast<uint16_t const*>(inputs[0]),
          gelu ? static_cast<uint16_t const*>(inputs[1]) : nullptr,
          static_cast<uint8_t*>(outputs[0]),
          static_cast<uint8_t*>(outputs[1]),
          rows * row_groups,
          row_groups,
          quantize_step(row_groups, gelu, processors),
          factor_of(desc, inputs)};
}

inline NormArguments norm_arguments(fastwan_glue_desc const& desc, void const* const* inputs,
                                    void* const* outputs) {
  NormArguments p{};
  p.y = static_cast<uint16_t const*>(inputs[0]);
  void const* const* modulation = inputs + 1;
  if (desc.kind != FASTWAN_GLUE_NORM_QUANTIZE) {
    bool const gated = (desc.flags & FASTWAN_GLUE_GATE) != 0;
    p.bias = static_cast<uint16_t const*>(inputs[1]);
    p.hidden = static_cast<uint16_t const*>(inputs[2]);
    p.gate = gated ? static_cast<float const*>(inputs[3]) : nullptr;
    modulation = inputs + (gated ? 4 : 3);
  }
  p.scale = static_cast<float const*>(modulation[0]);
  p.shift = static_cast<float const*>(modulation[1]);
  if (desc.kind == FASTWAN_GLUE_RESIDUAL_NORM) {
    p.normed = static_cast<uint16_t*>(outputs[0]);
  } else {
    bool const residual = desc.kind == FASTWAN_GLUE_RESIDUAL_NORM_QUANTIZE;
    p.hidden_out = residual ? static_cast<uint16_t*>(outputs[0]) : nullptr;
    p.codes = static_cast<uint8_t*>(outputs[residual ? 1 : 0]);
    p.scales = static_cast<uint8_t*>(outputs[residual ? 2 : 1]);
  }
  p.rows = desc.rows;
  p.parts = desc.columns / kPart;
  p.eps = desc.eps;
  p.add_one = (desc.flags & FASTWAN_GLUE_ADD_ONE) != 0;
  p.factor = factor_of(desc, inputs);
  return p;
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
          desc.softmax_scale,
          factor_of(desc, inputs)};
}

}  // namespace fastwan
