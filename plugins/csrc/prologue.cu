// Launch of the prologue.
#include "prologue.cuh"

#include "kernels.h"
#include "status.h"

namespace fastwan {

fastwan_status launch_prologue(fastwan_region_desc const& desc, fastwan_sage_layout const& layout,
                               SageBuffers const& buffers, cudaStream_t stream) {
  PrologueArguments const arguments = prologue_arguments(desc, layout, buffers);
  unsigned const blocks = static_cast<unsigned>(prologue_blocks(arguments));
  if (desc.num_heads <= 12) {
    prologue_kernel<12><<<blocks, kThreads, 0, stream>>>(arguments);
  } else {
    prologue_kernel<FASTWAN_MAX_HEADS><<<blocks, kThreads, 0, stream>>>(arguments);
  }
  return check(cudaGetLastError(), "prologue launch");
}

}  // namespace fastwan
