// Checks and launches of the kernels between two GEMMs.
#include "glue.h"

#include "glue_arguments.h"
#include "status.h"

namespace fastwan {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 34;  // of one tensor: groups are counted in 32 bits

// Null or misaligned pointers would only show as a fault on the device.
fastwan_status check_pointers(void const* const* pointers, int count, char const* what) {
  if (pointers == nullptr) return fail(FASTWAN_INVALID_ARGUMENT, "the %ss are null", what);
  for (int i = 0; i < count; ++i) {
    if (pointers[i] == nullptr || reinterpret_cast<uintptr_t>(pointers[i]) % 16 != 0) {
      return fail(FASTWAN_INVALID_ARGUMENT, "%s %d is null or not aligned to 16 bytes", what, i);
    }
  }
  return FASTWAN_OK;
}

fastwan_status validate(fastwan_glue_desc const* desc) {
  if (desc == nullptr || desc->struct_bytes != sizeof(fastwan_glue_desc)) {
    return fail(FASTWAN_INVALID_ARGUMENT, "the glue description is of another interface");
  }
  if (glue_counts(*desc).inputs == 0) {
    return fail(FASTWAN_INVALID_ARGUMENT, "unknown glue kind %u", desc->kind);
  }
  if (desc->rows < 1 || desc->columns < kGroup || desc->columns % kGroup != 0) {
    return fail(FASTWAN_INVALID_ARGUMENT, "%d rows of %d columns, not of a multiple of %d",
                desc->rows, desc->columns, kGroup);
  }
  bool const normed = has_layer_norm(*desc);
  bool const gated = normed && desc->kind != FASTWAN_GLUE_NORM_QUANTIZE;
  bool const cross = desc->kind == FASTWAN_GLUE_CROSS_ATTENTION;
  if (normed || cross) {
    if (desc->columns % kPart != 0 || desc->columns > kPart * kMaxParts) {
      return fail(FASTWAN_INVALID_ARGUMENT, "%d columns are not a multiple of %d up to %d",
                  desc->columns, kPart, kPart * kMaxParts);
    }
    if (!(desc->eps >= 0.0f)) {
      return fail(FASTWAN_INVALID_ARGUMENT, "eps %g must not be negative",
                  static_cast<double>(desc->eps));
    }
  }
  if (cross && (desc->keys < kKeyTile || desc->keys % kKeyTile != 0)) {
    return fail(FASTWAN_INVALID_ARGUMENT, "%d keys are not a multiple of %d", desc->keys, kKeyTile);
  }
  if (cross && !(desc->softmax_scale > 0.0f)) {
    return fail(FASTWAN_INVALID_ARGUMENT, "softmax_scale %g must be positive",
                static_cast<double>(desc->softmax_scale));
  }
  uint32_t const known = (normed ? FASTWAN_GLUE_ADD_ONE : 0u) | (gated ? FASTWAN_GLUE_GATE : 0u) |
                         (reads_product(*desc) ? FASTWAN_GLUE_SCALE : 0u);
  if ((desc->flags & ~known) != 0) {
    return fail(FASTWAN_INVALID_ARGUMENT, "unknown flags 0x%x", desc->flags);
  }
  if (int64_t{desc->rows} * desc->columns > kMostElements) {
    return fail(FASTWAN_INVALID_ARGUMENT, "%d rows of %d columns are too large", desc->rows,
                desc->columns);
  }
  return FASTWAN_OK;
}

void launch_norm(NormArguments const& p, cudaStream_t stream) {
  auto const blocks = static_cast<unsigned>(norm_blocks(p));
  if (p.parts <= 12) {
    residual_norm_kernel<12><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    residual_norm_kernel<kMaxParts><<<blocks, kThreads, 0, stream>>>(p);
  }
}

void launch(fastwan_glue_desc const& desc, void const* const* inputs, void* const* outputs,
            cudaStream_t stream) {
  if (has_layer_norm(desc)) {
    return launch_norm(norm_arguments(desc, inputs, outputs), stream);
  }
  if (desc.kind == FASTWAN_GLUE_CROSS_ATTENTION) {
    CrossArguments const cross = cross_arguments(desc, inputs, outputs);
    auto const cross_grid = static_cast<unsigned>(cross_blocks(cross));
    cross_attention_kernel<<<cross_grid, kThreads, 0, stream>>>(cross);
    return;
  }
  QuantizeArguments const p = quantize_arguments(desc, inputs, outputs);
  auto const blocks = static_cast<unsigned>(quantize_blocks(p));
  if (desc.kind == FASTWAN_GLUE_GELU_QUANTIZE) {
    quantize_kernel<true><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    quantize_kernel<false><<<blocks, kThreads, 0, stream>>>(p);
  }
}

}  // namespace
}  // namespace fastwan

int fastwan_glue_workspace_bytes(fastwan_glue_desc const* desc, size_t* bytes) {
  using namespace fastwan;
  fastwan_status const status = validate(desc);
  if (status != FASTWAN_OK) return status;
  if (bytes == nullptr) return fail(FASTWAN_INVALID_ARGUMENT, "the pointer for the size is null");
  *bytes = 0;
  return FASTWAN_OK;
}

int fastwan_glue_enqueue(fastwan_glue_desc const* desc, void const* const* inputs,
                         void* const* outputs, void* /* workspace */, size_t /* workspace_bytes */,
                         void* stream) {
  using namespace fastwan;
  fastwan_status status = validate(desc);
  if (status != FASTWAN_OK) return status;
  status = check_pointers(inputs, input_count(*desc), "input");
  if (status == FASTWAN_OK) {
    status = check_pointers(outputs, glue_counts(*desc).outputs, "output");
  }
  if (status != FASTWAN_OK) return status;
  launch(*desc, inputs, outputs, static_cast<cudaStream_t>(stream));
  return check(cudaGetLastError(), "glue launch");
}
