// Checks and launches of SageAttention2++.
#include "sage2.h"

#include "sage2_attention.cuh"
#include "sage2_layout.h"
#include "sage2_quantise.cuh"
#include "status.h"

namespace fastwan::sage2 {
namespace {

constexpr int64_t kMaxRows = int64_t{1} << 24;  // of all heads: bytes of a tile are counted in 32 bits
constexpr int kInputs = 7;  // without the scales of rows

enum Stage { kPrologue = 1, kAttention = 2 };

fastwan_status validate(fastwan_sage2_desc const* desc) {
  if (desc == nullptr || desc->struct_bytes != sizeof(fastwan_sage2_desc)) {
    return fail(FASTWAN_INVALID_ARGUMENT, "the SageAttention2 description is of another interface");
  }
  if (!per_thread(*desc) && granularity(*desc) != FASTWAN_SAGE2_PER_WARP) {
    return fail(FASTWAN_INVALID_ARGUMENT, "unknown granularity %u", granularity(*desc));
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
  if ((int64_t{desc->length} + kQueryTile) * desc->batch * desc->num_heads > kMaxRows) {
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

// Compute capability times ten of a device that runs the region.
fastwan_status served(int device, int& capability) {
  int major = 0, minor = 0;
  fastwan_status status = check(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device query");
  if (status != FASTWAN_OK) return status;
  status = check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                 "device query");
  if (status != FASTWAN_OK) return status;
  capability = 10 * major + minor;
#if FASTWAN_EMULATED
  if (capability == 90) return FASTWAN_OK;
  char const* const needed = "9.0";
#else
  for (int known : {89, 90, 120, 121}) {
    if (capability == known) return FASTWAN_OK;
  }
  char const* const needed = "8.9, 9.0, 12.0 or 12.1";
#endif
  return fail(FASTWAN_UNSUPPORTED_DEVICE,
              "device %d has compute capability %d.%d; SageAttention2 needs %s", device, major,
              minor, needed);
}

// Values are fp16 where there is no MMA on e4m3.
bool wide_on(int capability) { return capability == 90; }

template <bool kRowScaled>
fastwan_status launch_prologue(PrologueArguments const& p, cudaStream_t stream) {
  statistics_kernel<kRowScaled>
      <<<static_cast<unsigned>(statistics_blocks(p)), kThreads, 0, stream>>>(p);
  reduce_kernel<<<static_cast<unsigned>(reduce_blocks(p)), kThreads, 0, stream>>>(p);
  auto* const quantise =
      p.per_thread ? quantise_kernel<true, kRowScaled> : quantise_kernel<false, kRowScaled>;
  quantise<<<static_cast<unsigned>(quantise_blocks(p)), kThreads, 0, stream>>>(p);
  return check(cudaGetLastError(), "SageAttention2 prologue launch");
}

fastwan_status launch_attention(fastwan_sage2_desc const& desc, AttentionArguments const& p,
                                bool wide, cudaStream_t stream) {
  int const bytes = shared_bytes(wide);
  fastwan_status const status =
      check(cudaFuncSetAttribute(attention_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 bytes),
            "SageAttention2 shared memory");
  if (status != FASTWAN_OK) return status;
  auto const blocks = static_cast<unsigned>(attention_blocks(desc, p));
  attention_kernel<<<blocks, kAttentionThreads, bytes, stream>>>(p);
  return check(cudaGetLastError(), "SageAttention2 launch");
}

fastwan_status enqueue(fastwan_sage2_desc const* desc, void const* const* inputs,
                       void* const* outputs, void* workspace, size_t workspace_bytes, void* stream,
                       int stages) {
  fastwan_status status = validate(desc);
  if (status == FASTWAN_OK && (stages & kPrologue) != 0) {
    status = check_pointers(inputs, kInputs + (row_scaled(*desc) ? 1 : 0), "input");
  }
  if (status == FASTWAN_OK) status = check_pointers(outputs, 1, "output");
  if (status != FASTWAN_OK) return status;
  fastwan_sage2_layout const layout = make_layout(*desc);
  if (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % 256 != 0) {
    return fail(FASTWAN_INVALID_ARGUMENT, "the workspace is null or not aligned to 256 bytes");
  }
  if (workspace_bytes < static_cast<size_t>(layout.total)) {
    return fail(FASTWAN_WORKSPACE_TOO_SMALL, "the workspace has %zu bytes, the region needs %lld",
                workspace_bytes, static_cast<long long>(layout.total));
  }
  int device = 0, capability = 0;
  status = check(cudaGetDevice(&device), "current device");
  if (status == FASTWAN_OK) status = served(device, capability);
  if (status != FASTWAN_OK) return status;
  auto* const queue = static_cast<cudaStream_t>(stream);
  Buffers const buffers = bind(*desc, layout, inputs, outputs, workspace);
  bool const wide = wide_on(capability);
  if ((stages & kPrologue) != 0) {
    auto* const launch = row_scaled(*desc) ? launch_prologue<true> : launch_prologue<false>;
    status = launch(prologue_arguments(*desc, layout, buffers, wide), queue);
  }
  if (status == FASTWAN_OK && (stages & kAttention) != 0) {
    status = launch_attention(*desc, attention_arguments(*desc, layout, buffers), wide, queue);
  }
  return status;
}

}  // namespace
}  // namespace fastwan::sage2

int fastwan_sage2_device_supported(int device) {
  int capability = 0;
  return fastwan::sage2::served(device, capability);
}

int fastwan_sage2_layout_of(fastwan_sage2_desc const* desc, fastwan_sage2_layout* layout) {
  fastwan_status const status = fastwan::sage2::validate(desc);
  if (status != FASTWAN_OK) return status;
  if (layout == nullptr) {
    return fastwan::fail(FASTWAN_INVALID_ARGUMENT, "the pointer for the layout is null");
  }
  *layout = fastwan::sage2::make_layout(*desc);
  return FASTWAN_OK;
}

int fastwan_sage2_workspace_bytes(fastwan_sage2_desc const* desc, size_t* bytes) {
  fastwan_sage2_layout layout{};
  int const status = fastwan_sage2_layout_of(desc, &layout);
  if (status != FASTWAN_OK) return status;
  if (bytes == nullptr) {
    return fastwan::fail(FASTWAN_INVALID_ARGUMENT, "the pointer for the size is null");
  }
  *bytes = static_cast<size_t>(layout.total);
  return FASTWAN_OK;
}

int fastwan_sage2_enqueue(fastwan_sage2_desc const* desc, void const* const* inputs,
                          void* const* outputs, void* workspace, size_t workspace_bytes,
                          void* stream) {
  using namespace fastwan::sage2;
  return enqueue(desc, inputs, outputs, workspace, workspace_bytes, stream, kPrologue | kAttention);
}

int fastwan_sage2_prologue_enqueue(fastwan_sage2_desc const* desc, void const* const* inputs,
                                   void* const* outputs, void* workspace, size_t workspace_bytes,
                                   void* stream) {
  using namespace fastwan::sage2;
  return enqueue(desc, inputs, outputs, workspace, workspace_bytes, stream, kPrologue);
}

int fastwan_sage2_attention_enqueue(fastwan_sage2_desc const* desc, void* const* outputs,
                                    void* workspace, size_t workspace_bytes, void* stream) {
  using namespace fastwan::sage2;
  return enqueue(desc, nullptr, outputs, workspace, workspace_bytes, stream, kAttention);
}
