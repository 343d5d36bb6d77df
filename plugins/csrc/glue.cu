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

template <NormKind kKind>
void launch_norm(NormArguments const& p, cudaStream_t stream) {
  auto const blocks = static_cast<unsigned>(norm_blocks(p));
  if (p.parts == kUsualParts) {
    residual_norm_kernel<kUsualParts, kKind><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    residual_norm_kernel<kMaxParts, kKind><<<blocks, kThreads, 0, stream>>>(p);
  }
}

fastwan_status launch_quantize(fastwan_glue_desc const& desc, void const* const* inputs,
                               void* const* outputs, cudaStream_t stream) {
  int device = 0, processors = 0;
  fastwan_status status = check(cudaGetDevice(&device), "current device");
  if (status == FASTWAN_OK) {
    status = check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                   "count of multiprocessors");
  }
  if (status != FASTWAN_OK) return status;
  QuantizeArguments const p = quantize_arguments(desc, inputs, outputs, processors);
  auto const blocks = static_cast<unsigned>(quantize_blocks(p));
  if (desc.kind == FASTWAN_GLUE_GELU_QUANTIZE) {
    quantize_kernel<true><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    quantize_kernel<false><<<blocks, kThreads, 0, stream>>>(p);
  }
  return FASTWAN_OK;
}

fastwan_status launch(fastwan_glue_desc const& desc, void const* const* inputs,
                      void* const* outputs, cudaStream_t stream) {
  switch (desc.kind) {
    case FASTWAN_GLUE_RESIDUAL_NORM_QUANTIZE:
      launch_norm<NormKind::kResidualNormQuantize>(norm_arguments(desc, inputs, outputs), stream);
      return FASTWAN_OK;
    case FASTWAN_GLUE_NORM_QUANTIZE:
      launch_norm<NormKind::kNormQuantize>(norm_arguments(desc, inputs, outputs), stream);
      return FASTWAN_OK;
    case FASTWAN_GLUE_RESIDUAL_NORM:
      launch_norm<NormKind::kResidualNorm>(norm_arguments(desc, inputs, outputs), stream);
      return FASTWAN_OK;
    case FASTWAN_GLUE_CROSS_ATTENTION: {
      CrossArguments const p = cross_arguments(desc, inputs, outputs);
      cross_attention_kernel<<<static_cast<unsigned>(cross_blocks(p)), kThreads, 0, stream>>>(p);
      return FASTWAN_OK;
    }
    default:
      return launch_quantize(desc, inputs, outputs, stream);
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
  status = launch(*desc, inputs, outputs, static_cast<cudaStream_t>(stream));
  return status == FASTWAN_OK ? check(cudaGetLastError(), "glue launch") : status;
}
