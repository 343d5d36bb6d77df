// The launches behind a region, and what they were compiled for.
#pragma once

#include <cuda_runtime_api.h>

#include "fastwan_plugins.h"
#include "layout.h"

namespace fastwan {

fastwan_status launch_prologue(fastwan_region_desc const& desc, fastwan_sage_layout const& layout,
                               SageBuffers const& buffers, cudaStream_t stream);

fastwan_status launch_attention(fastwan_region_desc const& desc,
                                fastwan_sage_layout const& layout, SageBuffers const& buffers,
                                cudaStream_t stream);

// FASTWAN_OK when the current device can run the attention.
fastwan_status attention_supported(int device);

}  // namespace fastwan
