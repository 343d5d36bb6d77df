// Launch of FlashInfer's FP4 attention kernel for compute capability 12.x, on the operands that the
// prologue packs for either kernel.
//
// Its headers are used as published. Ours are the launch, the numerics of the softmax
// (flashinfer_softmax.h) and, with FASTWAN_EMULATED, the equivalents of what compute capability 9.0
// lacks (emulated_flashinfer.h).
#include "tensor_map_status.h"

// Both kernels name their parameters so, with other members.
#define Qkv_params FlashinferQkvParams
#define Flash_fwd_params FlashinferParams

#include "flashinfer_softmax.h"

#if FASTWAN_EMULATED
#include "emulated_flashinfer.h"
#endif
#define CollectiveMainloopFwd PublishedMainloop
#include <flashinfer/attention/sm120/nvfp4_attention_sm120/compute/mainloop.cuh>
#undef CollectiveMainloopFwd

namespace nvfp4_attention {

// The published main loop, with the one argument that the softmax needs besides.
template <typename Traits, bool IsCausal>
struct CollectiveMainloopFwd : PublishedMainloop<Traits, IsCausal> {
  using Published = PublishedMainloop<Traits, IsCausal>;
  struct Params : Published::Params {
    bool exact_max;
  };

  template <typename PipelineQ, typename Pipeline, typename StateQ, typename State, typename Output,
            typename Softmax, typename... Rest>
  CUTLASS_DEVICE void mma(Params const& params, PipelineQ pipeline_q, Pipeline pipeline_k,
                          Pipeline pipeline_v, StateQ& read_q, State& read_k, State& read_v,
                          Output& output, Softmax& softmax, Rest&&... rest) {
    softmax.exact_max = params.exact_max;
    Published::mma(params, pipeline_q, pipeline_k, pipeline_v, read_q, read_k, read_v, output,
                   softmax, static_cast<Rest&&>(rest)...);
  }
};

}  // namespace nvfp4_attention

#include <flashinfer/attention/sm120/nvfp4_attention_sm120/kernel/attention_kernel.h>

#include "kernels.h"
#include "status.h"

namespace fastwan {
namespace {

constexpr int kStages = 3;
using Traits = nvfp4_attention::Flash_fwd_kernel_traits<FASTWAN_HEAD_DIM, FASTWAN_TILE,
                                                        FASTWAN_TILE, kStages, /*kClusterM=*/1,
                                                        /*BlockMean=*/false>;
using Mainloop = nvfp4_attention::CollectiveMainloopFwd<Traits, /*Is_causal=*/false>;
using Epilogue = nvfp4_attention::CollectiveEpilogueFwd<Traits>;
using Scheduler = nvfp4_attention::StaticPersistentTileScheduler;
constexpr auto* kKernel = &nvfp4_attention::attention_kernel_ws<Traits, false, /*ReturnLSE=*/false,
                                                                Scheduler>;
constexpr int kSharedBytes = static_cast<int>(sizeof(typename Traits::SharedStorage));
constexpr float kLog2E = 1.44269504088896340736f;

Mainloop::Params mainloop_parameters(fastwan_region_desc const& desc, int padded,
                                     SageBuffers const& b) {
  using cute::_1;
  using Element = Traits::Element;
  using Scale = Traits::ElementSF;
  int const heads = desc.num_heads, batch = desc.batch, dim = FASTWAN_HEAD_DIM;
  int64_t const head_stride = int64_t{padded} * dim;
  int64_t const batch_stride = head_stride * heads;
  // Elements from one row of k, and from one tile of v, to the next, in those of the row or tile.
  int const apart = static_cast<int>(kPiecePitch / kPieceBytes);
  return {Mainloop::Published::to_underlying_arguments(
              {reinterpret_cast<Element const*>(b.q),
               {padded, dim, heads, batch},
               {dim, _1{}, head_stride, batch_stride},
               reinterpret_cast<Element const*>(b.k),
               {padded, dim, heads, batch},
               {apart * dim, _1{}, apart * head_stride, apart * batch_stride},
               {desc.num_tokens, dim, heads, batch},
               reinterpret_cast<Element const*>(b.v),
               {dim, apart * padded, heads, batch},
               {apart * padded, _1{}, apart * head_stride, apart * batch_stride},
               reinterpret_cast<Scale const*>(b.q_scale),
               {padded, dim, heads, batch},
               reinterpret_cast<Scale const*>(b.k_scale),
               {padded, dim, heads, batch},
               reinterpret_cast<Scale const*>(b.v_scale),
               {dim, padded, heads, batch},
               b.delta_s,  // one row a head, as the kernel lays it out without block means
               {FASTWAN_TILE, padded, heads, batch},
               {},
               cutlass::FastDivmod(1),
               desc.softmax_scale * kLog2E}),
          (desc.flags & FASTWAN_FLAG_EXACT_MAX) != 0};
}

Epilogue::Params epilogue_parameters(fastwan_region_desc const& desc, SageBuffers const& b) {
  using cute::_1;
  int64_t const row = int64_t{desc.num_heads} * FASTWAN_HEAD_DIM;
  // The store is clipped at num_tokens.
  return Epilogue::to_underlying_arguments(
      {reinterpret_cast<cutlass::bfloat16_t*>(b.out),
       {desc.num_tokens, FASTWAN_HEAD_DIM, desc.num_heads, desc.batch},
       {row, _1{}, FASTWAN_HEAD_DIM, row * desc.length},
       nullptr,
       {}});
}

}  // namespace

fastwan_status launch_flashinfer(fastwan_region_desc const& desc, fastwan_sage_layout const& layout,
                                 SageBuffers const& buffers, cudaStream_t stream) {
  int device = 0, processors = 0;
  if (auto status = check(cudaGetDevice(&device), "current device"); status != FASTWAN_OK) {
    return status;
  }
  if (auto status = attention_supported(device); status != FASTWAN_OK) return status;
  if (auto status =
          check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                "device query");
      status != FASTWAN_OK) {
    return status;
  }
  int const padded = static_cast<int>(layout.padded_tokens);
  tensor_map_error = CUDA_SUCCESS;
  auto const mainloop = mainloop_parameters(desc, padded, buffers);
  auto const epilogue = epilogue_parameters(desc, buffers);
  if (tensor_map_error != CUDA_SUCCESS) {
    return fail(FASTWAN_CUDA_ERROR, "a TMA descriptor of the attention could not be made (%d)",
                static_cast<int>(tensor_map_error));
  }
  Scheduler::Arguments const tiles{padded / FASTWAN_TILE, desc.num_heads, desc.batch};
  if (auto status = check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               kSharedBytes),
                          "attention shared memory");
      status != FASTWAN_OK) {
    return status;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {1, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = Scheduler::get_grid_dim(tiles, processors);
  config.blockDim = dim3(Traits::kNThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return check(cudaLaunchKernelEx(&config, kKernel, Flash_fwd_params{}, mainloop,
                                  epilogue, Scheduler::to_underlying_arguments(tiles)),
               "attention launch");
}

}  // namespace fastwan
