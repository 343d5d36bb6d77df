// Launch of the FP4 attention kernel of fastvideo-kernel (attn_qat_infer/blackwell).
//
// Its headers are used as published. Four things around them are ours: the launch, which checks
// every call, sizes the grid from the device and writes [B, L, C] directly; the first tile of the
// softmax (SoftmaxFused below); the division of keys where the last wave would leave most of the
// device idle (key_split.h, attention_parts.cuh); and shims/, in place of the PyTorch headers that
// params.h includes.
//
// With FASTWAN_EMULATED the same kernel runs on compute capability 9.0: the FP4 MMA and the
// conversion to e2m1 are replaced by exact equivalents (emulated_attention.h), and TMA moves bytes
// (emulated_tensor_map.h). Without it none of that is in the library.
#include "tensor_map_status.h"

#define SoftmaxFused PublishedSoftmaxFused
#include "softmax_fused.h"
#undef SoftmaxFused

namespace flash {

// The published softmax with one level of scales on P. It starts the maxima of the first tile from
// what the registers hold, which is 0; `exact_max` starts them from minus infinity.
template <int Rows>
struct SoftmaxFused : PublishedSoftmaxFused<Rows> {
  using Published = PublishedSoftmaxFused<Rows>;
  bool exact_max;

  CUTLASS_DEVICE explicit SoftmaxFused(bool exact)
      : Published(/*single_level=*/true), exact_max(exact) {}

  template <bool FirstTile, bool InfCheck = false, typename TensorAcc, typename TensorMax>
  CUTLASS_DEVICE void online_softmax_with_quant(TensorAcc& acc, TensorMax& abs_max,
                                                float const scale_log2) {
    if constexpr (FirstTile) fill(abs_max, exact_max ? -INFINITY : 0.0f);
    Published::template online_softmax_with_quant<FirstTile, InfCheck>(acc, abs_max, scale_log2);
  }
};

}  // namespace flash

#if FASTWAN_EMULATED
#include "emulated_attention.h"
#else
#include "kernel_traits.h"
#endif
#include "kernel_ws.h"

#include "attention_parts.cuh"
#include "kernels.h"
#include "status.h"

namespace fastwan {
namespace {

constexpr int kStages = 3;
using Traits = Flash_fwd_kernel_traits<FASTWAN_HEAD_DIM, FASTWAN_TILE, FASTWAN_TILE, kStages,
                                       /*kClusterM=*/1, /*BlockMean=*/false,
                                       cutlass::nv_float4_t<cutlass::float_e2m1_t>,
                                       cutlass::bfloat16_t>;
using Mainloop = flash::CollectiveMainloopFwd<Traits, /*Is_causal=*/false>;
using Epilogue = flash::CollectiveEpilogueFwd<Traits>;
using Scheduler = flash::StaticPersistentTileScheduler;
constexpr auto* kKernel = &flash::compute_attn_ws<Traits, false, Scheduler>;
constexpr int kSharedBytes = static_cast<int>(sizeof(typename Traits::SharedStorage));
constexpr float kLog2E = 1.44269504088896340736f;

// Tiles of keys that a block sees, of which `first` is the first.
struct KeyTiles {
  int first, count;
};

// Descriptors begin at the first key of `keys`; nothing behind its last is read.
Mainloop::Params mainloop_parameters(fastwan_region_desc const& desc, int padded,
                                     SageBuffers const& b, KeyTiles keys) {
  using cute::_1;
  using Element = Traits::Element;
  using Scale = Traits::ElementSF;
  int const heads = desc.num_heads, batch = desc.batch, dim = FASTWAN_HEAD_DIM;
  int64_t const head_stride = int64_t{padded} * dim;
  int64_t const batch_stride = head_stride * heads;
  // A zero term that is added to the logits is loaded for every tile of keys; as one row a head it
  // is as small as the kernel's layout allows.
  int64_t const zero_head = padded, zero_batch = zero_head * heads;
  // Elements from one row of k, and from one tile of v, to the next, in those of the row or tile.
  int const apart = static_cast<int>(kPiecePitch / kPieceBytes);
  int const key = keys.first * FASTWAN_TILE, count = keys.count * FASTWAN_TILE;
  int const tokens = smaller(desc.num_tokens - key, count);
  // A swizzled tile of scales of k is 128 rows of 8 bytes; of v, 512 bytes in each 64 channels.
  int64_t const k_scales = int64_t{key} * (dim / 16), v_scales = int64_t{keys.first} * 512;
  return Mainloop::to_underlying_arguments(
      {reinterpret_cast<Element const*>(b.q),
       {padded, dim, heads, batch},
       {dim, _1{}, head_stride, batch_stride},
       reinterpret_cast<Element const*>(b.k + key * kPiecePitch),
       {count, dim, heads, batch},
       {apart * dim, _1{}, apart * head_stride, apart * batch_stride},
       {tokens, dim, heads, batch},
       reinterpret_cast<Element const*>(b.v + keys.first * kPiecePitch),
       {dim, apart * count, heads, batch},
       {apart * padded, _1{}, apart * head_stride, apart * batch_stride},
       reinterpret_cast<Scale const*>(b.q_scale),
       {padded, dim, heads, batch},
       reinterpret_cast<Scale const*>(b.k_scale + k_scales),
       {padded, dim, heads, batch},
       reinterpret_cast<Scale const*>(b.v_scale + v_scales),
       {dim, padded, heads, batch},
       b.delta_s,
       {FASTWAN_TILE, padded, heads, batch},
       {0, _1{}, zero_head, zero_batch},
       desc.softmax_scale * kLog2E});
}

Epilogue::Params epilogue_parameters(fastwan_region_desc const& desc, SageBuffers const& b) {
  using cute::_1;
  int64_t const row = int64_t{desc.num_heads} * FASTWAN_HEAD_DIM;
  // The store is clipped at num_tokens; the log-sum-exp is never written.
  return Epilogue::to_underlying_arguments(
      {reinterpret_cast<cutlass::bfloat16_t*>(b.out),
       {desc.num_tokens, FASTWAN_HEAD_DIM, desc.num_heads, desc.batch},
       {row, _1{}, FASTWAN_HEAD_DIM, row * desc.length},
       nullptr,
       {_1{}, desc.num_tokens, int64_t{desc.num_heads} * desc.num_tokens}});
}

using Parts = PartArguments<Mainloop>;
constexpr auto* kPartKernel = &attention_parts<Traits, Mainloop>;

// One block a multiprocessor, on a cluster of one.
template <class Kernel, class... Arguments>
fastwan_status launch(Kernel* kernel, int blocks, cudaStream_t stream, char const* what,
                      Arguments const&... arguments) {
  if (auto status = check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               kSharedBytes),
                          "attention shared memory");
      status != FASTWAN_OK) {
    return status;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {1, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(Traits::kNThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

fastwan_status no_descriptor() {
  return fail(FASTWAN_CUDA_ERROR, "a TMA descriptor of the attention could not be made (%d)",
              static_cast<int>(tensor_map_error));
}

// The tiles that every block sees all keys of, as published.
fastwan_status launch_whole(fastwan_region_desc const& desc, int padded, SageBuffers const& buffers,
                            int tiles, int processors, cudaStream_t stream) {
  tensor_map_error = CUDA_SUCCESS;
  int const query_tiles = padded / FASTWAN_TILE;
  auto const mainloop = mainloop_parameters(desc, padded, buffers, {0, query_tiles});
  auto const epilogue = epilogue_parameters(desc, buffers);
  if (tensor_map_error != CUDA_SUCCESS) return no_descriptor();
  auto scheduler = Scheduler::to_underlying_arguments({query_tiles, desc.num_heads, desc.batch});
  scheduler.total_blocks = tiles;
  Flash_fwd_params parameters{};
  // The kernel hands this flag to SoftmaxFused, where it means `exact_max`.
  parameters.single_level_p_quant = (desc.flags & FASTWAN_FLAG_EXACT_MAX) != 0;
  return launch(kKernel, smaller(tiles, processors), stream, "attention launch", parameters,
                mainloop, epilogue, scheduler);
}

// The tiles behind them, in parts; then their merge.
fastwan_status launch_divided(fastwan_region_desc const& desc, int padded,
                              SageBuffers const& buffers, KeySplit split, cudaStream_t stream) {
  tensor_map_error = CUDA_SUCCESS;
  int const query_tiles = padded / FASTWAN_TILE;
  int const divided = query_tiles * desc.num_heads * desc.batch - split.whole;
  Parts arguments{};
  for (int part = 0; part < split.parts; ++part) {
    int const first = first_key_tile(query_tiles, split.parts, part);
    int const count = first_key_tile(query_tiles, split.parts, part + 1) - first;
    new (arguments.loops + part * sizeof(Mainloop::Params))
        Mainloop::Params(mainloop_parameters(desc, padded, buffers, {first, count}));
  }
  if (tensor_map_error != CUDA_SUCCESS) return no_descriptor();
  arguments.slots = buffers.slots;
  arguments.first_tile = split.whole;
  arguments.query_tiles = query_tiles;
  arguments.heads = desc.num_heads;
  arguments.parts = split.parts;
  arguments.exact_max = (desc.flags & FASTWAN_FLAG_EXACT_MAX) != 0;
  if (auto status = launch(kPartKernel, divided * split.parts, stream, "attention of parts",
                           arguments);
      status != FASTWAN_OK) {
    return status;
  }
  MergeArguments const merge{buffers.slots,  buffers.out, split.whole,     query_tiles,
                             desc.num_heads, split.parts, desc.num_tokens, desc.length,
                             desc.softmax_scale * kLog2E};
  dim3 const grid(static_cast<unsigned>(divided), FASTWAN_TILE / kMergeRows);
  merge_kernel<<<grid, kMergeThreads, 0, stream>>>(merge);
  return check(cudaGetLastError(), "merge of the attention's parts");
}

}  // namespace

fastwan_status attention_supported(int device) {
  int major = 0, minor = 0, shared = 0;
  if (auto status = check(
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device query");
      status != FASTWAN_OK) {
    return status;
  }
  if (auto status = check(
          cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device query");
      status != FASTWAN_OK) {
    return status;
  }
  if (auto status =
          check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                "device query");
      status != FASTWAN_OK) {
    return status;
  }
#if FASTWAN_EMULATED
  bool const served = major == 9 && minor == 0;
  char const* const needs = "the emulated FP4 attention needs 9.0";
#else
  bool const served = major == 12 && minor <= 1;
  char const* const needs = "the FP4 attention needs 12.0 or 12.1";
#endif
  if (!served) {
    return fail(FASTWAN_UNSUPPORTED_DEVICE, "device %d has compute capability %d.%d; %s", device,
                major, minor, needs);
  }
  if (shared < kSharedBytes) {
    return fail(FASTWAN_UNSUPPORTED_DEVICE,
                "device %d allows %d bytes of shared memory a block; the FP4 attention needs %d",
                device, shared, kSharedBytes);
  }
  return FASTWAN_OK;
}

fastwan_status launch_attention(fastwan_region_desc const& desc, fastwan_sage_layout const& layout,
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
  int const query_tiles = padded / FASTWAN_TILE;
  int const tiles = query_tiles * desc.num_heads * desc.batch;
  KeySplit const split =
      key_split(tiles, query_tiles, desc.processors == 0 ? processors : desc.processors);
  if (split.whole > 0) {
    auto const status = launch_whole(desc, padded, buffers, split.whole, processors, stream);
    if (status != FASTWAN_OK) return status;
  }
  if (split.parts == 1) return FASTWAN_OK;
  return launch_divided(desc, padded, buffers, split, stream);
}

}  // namespace fastwan
