// The C interface: checks of what a caller gives, status messages, dispatch of regions.
#include <cstdarg>
#include <cstdio>

#include "kernels.h"
#include "layout.h"
#include "status.h"

namespace fastwan {
namespace {

thread_local char last_error[512] = "";

// The grid is one-dimensional, and rows are counted in int on the device.
constexpr int64_t kMaxRows = int64_t{1} << 30;

fastwan_status validate(fastwan_region_desc const* desc) {
  if (desc == nullptr) return fail(FASTWAN_INVALID_ARGUMENT, "the region description is null");
  if (desc->struct_bytes != sizeof(fastwan_region_desc)) {
    return fail(FASTWAN_INVALID_ARGUMENT,
                "the region description has %u bytes, this library's has %zu: it was built for "
                "another interface than %d",
                desc->struct_bytes, sizeof(fastwan_region_desc), FASTWAN_INTERFACE_VERSION);
  }
  if (desc->kind != FASTWAN_REGION_SAGE_ATTENTION3) {
    return fail(FASTWAN_INVALID_ARGUMENT, "unknown region kind %u", desc->kind);
  }
  if (desc->batch < 1 || desc->length < 1) {
    return fail(FASTWAN_INVALID_ARGUMENT, "batch %d and length %d must be positive", desc->batch,
                desc->length);
  }
  if (desc->num_heads < 1 || desc->num_heads > FASTWAN_MAX_HEADS) {
    return fail(FASTWAN_INVALID_ARGUMENT, "num_heads %d is not within 1 .. %d", desc->num_heads,
                FASTWAN_MAX_HEADS);
  }
  if (desc->num_tokens < 1 || desc->num_tokens > desc->length) {
    return fail(FASTWAN_INVALID_ARGUMENT, "num_tokens %d is not within 1 .. length %d",
                desc->num_tokens, desc->length);
  }
  if (!(desc->eps >= 0.0f) || !(desc->softmax_scale > 0.0f)) {
    return fail(FASTWAN_INVALID_ARGUMENT, "eps %g must not be negative, softmax_scale %g positive",
                static_cast<double>(desc->eps), static_cast<double>(desc->softmax_scale));
  }
  if ((desc->flags & ~FASTWAN_FLAG_EXACT_MAX) != 0) {
    return fail(FASTWAN_INVALID_ARGUMENT, "unknown flags 0x%x", desc->flags);
  }
  if (desc->implementation > FASTWAN_ATTENTION_FLASHINFER) {
    return fail(FASTWAN_INVALID_ARGUMENT, "unknown implementation %u of the attention",
                desc->implementation);
  }
  if (desc->processors < 0) {
    return fail(FASTWAN_INVALID_ARGUMENT, "processors %d must not be negative", desc->processors);
  }
  int64_t const rows = (int64_t{desc->length} + FASTWAN_TILE) * desc->batch * desc->num_heads;
  if (rows > kMaxRows) {
    return fail(FASTWAN_INVALID_ARGUMENT, "batch %d x length %d x num_heads %d is too large",
                desc->batch, desc->length, desc->num_heads);
  }
  return FASTWAN_OK;
}

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

fastwan_status check_workspace(fastwan_sage_layout const& layout, void const* workspace,
                               size_t bytes) {
  if (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % 256 != 0) {
    return fail(FASTWAN_INVALID_ARGUMENT, "the workspace is null or not aligned to 256 bytes");
  }
  if (bytes < static_cast<size_t>(layout.total)) {
    return fail(FASTWAN_WORKSPACE_TOO_SMALL, "the workspace has %zu bytes, the region needs %lld",
                bytes, static_cast<long long>(layout.total));
  }
  return FASTWAN_OK;
}

constexpr int kSageInputs = 7;

enum Stage { kPrologue = 1, kAttention = 2 };

fastwan_status enqueue(fastwan_region_desc const* desc, void const* const* inputs,
                       void* const* outputs, void* workspace, size_t workspace_bytes, void* stream,
                       int stages) {
  fastwan_status status = validate(desc);
  if (status == FASTWAN_OK && (stages & kPrologue) != 0) {
    status = check_pointers(inputs, kSageInputs, "input");
  }
  if (status == FASTWAN_OK) status = check_pointers(outputs, 1, "output");
  if (status != FASTWAN_OK) return status;
  fastwan_sage_layout const layout = make_layout(*desc);
  status = check_workspace(layout, workspace, workspace_bytes);
  if (status != FASTWAN_OK) return status;

  auto* const queue = static_cast<cudaStream_t>(stream);
  SageBuffers const buffers = bind(layout, inputs, outputs, workspace);
  if (stages == (kPrologue | kAttention)) {
    // Nothing is launched on a device that cannot finish the region.
    int device = 0;
    status = check(cudaGetDevice(&device), "current device");
    if (status == FASTWAN_OK) status = attention_supported(device);
  }
  if (status == FASTWAN_OK && (stages & kPrologue) != 0) {
    status = launch_prologue(*desc, layout, buffers, queue);
  }
  if (status == FASTWAN_OK && (stages & kAttention) != 0) {
    auto* const launch = desc->implementation == FASTWAN_ATTENTION_FLASHINFER ? &launch_flashinfer
                                                                              : &launch_attention;
    status = launch(*desc, layout, buffers, queue);
  }
  return status;
}

}  // namespace

fastwan_status fail(fastwan_status status, char const* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace fastwan

int fastwan_interface_version(void) { return FASTWAN_INTERFACE_VERSION; }

char const* fastwan_build_info(void) { return FASTWAN_BUILD_INFO; }

char const* fastwan_last_error(void) { return fastwan::last_error; }

int fastwan_device_supported(int device) { return fastwan::attention_supported(device); }

int fastwan_sage_layout_of(fastwan_region_desc const* desc, fastwan_sage_layout* layout) {
  fastwan_status const status = fastwan::validate(desc);
  if (status != FASTWAN_OK) return status;
  if (layout == nullptr) {
    return fastwan::fail(FASTWAN_INVALID_ARGUMENT, "the pointer for the layout is null");
  }
  *layout = fastwan::make_layout(*desc);
  return FASTWAN_OK;
}

int fastwan_region_workspace_bytes(fastwan_region_desc const* desc, size_t* bytes) {
  fastwan_sage_layout layout{};
  int const status = fastwan_sage_layout_of(desc, &layout);
  if (status != FASTWAN_OK) return status;
  if (bytes == nullptr) {
    return fastwan::fail(FASTWAN_INVALID_ARGUMENT, "the pointer for the size is null");
  }
  *bytes = static_cast<size_t>(layout.total);
  return FASTWAN_OK;
}

int fastwan_region_enqueue(fastwan_region_desc const* desc, void const* const* inputs,
                           void* const* outputs, void* workspace, size_t workspace_bytes,
                           void* stream) {
  return fastwan::enqueue(desc, inputs, outputs, workspace, workspace_bytes, stream,
                          fastwan::kPrologue | fastwan::kAttention);
}

int fastwan_sage_prologue_enqueue(fastwan_region_desc const* desc, void const* const* inputs,
                                  void* const* outputs, void* workspace, size_t workspace_bytes,
                                  void* stream) {
  return fastwan::enqueue(desc, inputs, outputs, workspace, workspace_bytes, stream,
                          fastwan::kPrologue);
}

int fastwan_sage_attention_enqueue(fastwan_region_desc const* desc, void* const* outputs,
                                   void* workspace, size_t workspace_bytes, void* stream) {
  return fastwan::enqueue(desc, nullptr, outputs, workspace, workspace_bytes, stream,
                          fastwan::kAttention);
}
