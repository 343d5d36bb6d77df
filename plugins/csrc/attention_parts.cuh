// Attention of some tiles of queries whose keys are divided: one block a part, then a merge.
//
// The loads and the arithmetic are those of the published main loop, called as its kernel calls
// them. A part's descriptors begin at its first key, so the loop sees a shorter sequence. In place
// of the epilogue, a part keeps its sums in fp32 before they are divided.
//
// Included by attention.cu behind kernel_ws.h.
#pragma once

#include "merge_parts.cuh"

namespace flash {

// A softmax that leaves the sums as they are.
template <int Rows>
struct PartSoftmax : SoftmaxFused<Rows> {
  using SoftmaxFused<Rows>::SoftmaxFused;

  template <typename Sums>
  CUTLASS_DEVICE void finalize(Sums&) {
    CUTLASS_PRAGMA_UNROLL
    for (int row = 0; row < Rows; ++row) {
      CUTLASS_PRAGMA_UNROLL
      for (int lanes = 1; lanes < 4; lanes <<= 1) {
        this->row_sum(row) += __shfl_xor_sync(0xFFFFFFFFu, this->row_sum(row), lanes);
      }
    }
  }
};

}  // namespace flash

namespace fastwan {

// What the blocks of a launch share. `loops[i]` is the main loop's view of the keys of part i.
template <class Loop>
struct PartArguments {
  using Parameters = typename Loop::Params;
  alignas(alignof(Parameters)) unsigned char loops[kMaxParts * sizeof(Parameters)];
  float* slots;
  int first_tile;  // of queries, over heads and batch
  int query_tiles;  // of a head
  int heads;
  int parts;
  bool exact_max;

  CUTLASS_HOST_DEVICE Parameters const& loop(int part) const {
    return reinterpret_cast<Parameters const*>(loops)[part];
  }
};

// The published loop asks for the tile through this.
struct OneTile {
  int query_tile, head, batch;

  CUTLASS_DEVICE cute::tuple<int32_t, int32_t, int32_t> get_block_coord(int) const {
    return {query_tile, head, batch};
  }
};

template <class Pipeline>
CUTLASS_DEVICE typename Pipeline::Params pipeline_parameters(bool loads, uint32_t bytes,
                                                             uint32_t consumers) {
  typename Pipeline::Params parameters;
  parameters.transaction_bytes = bytes;
  parameters.role =
      loads ? Pipeline::ThreadCategory::Producer : Pipeline::ThreadCategory::Consumer;
  parameters.is_leader = threadIdx.x % cutlass::NumThreadsPerWarpGroup == 0;
  parameters.num_consumers = consumers;
  return parameters;
}

template <class Traits, class Loop>
__global__ void __launch_bounds__(Traits::kNThreads, 1)
    attention_parts(CUTE_GRID_CONSTANT PartArguments<Loop> const arguments) {
  using Pipeline = typename Traits::MainloopPipeline;
  using PipelineQ = typename Traits::MainloopPipelineQ;
  constexpr int kMmaThreads = cute::size(typename Traits::TiledMmaQK{});
  constexpr int kGroup = cutlass::NumThreadsPerWarpGroup;
  extern __shared__ char shared_memory[];
  auto& shared = *reinterpret_cast<typename Traits::SharedStorage*>(shared_memory);

  int const slot = static_cast<int>(blockIdx.x);
  int const part = slot % arguments.parts;
  int const tile = arguments.first_tile + slot / arguments.parts;
  int const row_of_tiles = tile / arguments.query_tiles;
  OneTile const work{tile % arguments.query_tiles, row_of_tiles % arguments.heads,
                     row_of_tiles / arguments.heads};
  auto const& parameters = arguments.loop(part);
  bool const loads = threadIdx.x < kGroup;

  if (cutlass::canonical_warp_idx_sync() == 0 && cute::elect_one_sync()) {
    Loop::prefetch_tma_descriptors(parameters);
  }
  using Cluster = typename Traits::ClusterShape_MNK;
  PipelineQ pipeline_q(
      shared.pipeline_q,
      pipeline_parameters<PipelineQ>(loads, Loop::TmaTransactionBytesQ, kMmaThreads), Cluster{});
  Pipeline pipeline_k(
      shared.pipeline_k,
      pipeline_parameters<Pipeline>(loads, Loop::TmaTransactionBytesK, kMmaThreads), Cluster{});
  Pipeline pipeline_v(
      shared.pipeline_v,
      pipeline_parameters<Pipeline>(loads, Loop::TmaTransactionBytesV, kMmaThreads), Cluster{});
  __syncthreads();

  Loop loop;
  if (loads) {
    // The descriptors' addresses are not constants here. 128 threads of 40 registers and 256 of 232
    // are the 384 of 168 that the kernel starts with.
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x < cutlass::NumThreadsPerWarp) {
      auto write_q = cutlass::make_producer_start_state<PipelineQ>();
      auto write_k = cutlass::make_producer_start_state<Pipeline>();
      auto write_v = cutlass::make_producer_start_state<Pipeline>();
      int index = 0, semaphore = 0;
      loop.load(parameters, 0, pipeline_q, pipeline_k, pipeline_v, write_q, write_k, write_v,
                shared, work, index, semaphore);
      loop.load_tail(pipeline_q, pipeline_k, pipeline_v, write_q, write_k, write_v);
    }
    return;
  }
  cutlass::arch::warpgroup_reg_alloc<232>();
  int const thread = static_cast<int>(threadIdx.x) - kGroup;
  typename Traits::PipelineState read_k, read_v;
  typename Traits::PipelineStateQ read_q;
  cute::Tensor sums = cute::partition_fragment_C(
      typename Traits::TiledMmaPV{}, cute::select<0, 2>(typename Traits::TileShape_MNK{}));
  flash::PartSoftmax<2 * (2 * Traits::kBlockM / kMmaThreads)> softmax(arguments.exact_max);
  loop.mma(parameters, pipeline_q, pipeline_k, pipeline_v, read_q, read_k, read_v, sums, softmax,
           loop.get_n_block_max(parameters, work.query_tile), thread, 0, work.query_tile, shared);

  // As emulated_mma.cuh numbers them: sums(2 j + c + 8 h, 0, n) is row lane / 4 + 8 h of the
  // warp's 16, column 32 n + 8 j + 2 (lane % 4) + c.
  float* const own = arguments.slots + slot * kSlotFloats;
  int const lane = thread % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    int const row = thread / 32 * 16 + lane / 4 + 8 * h;
#pragma unroll
    for (int n = 0; n < FASTWAN_HEAD_DIM / 32; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int const column = 32 * n + 8 * j + 2 * (lane % 4);
        *reinterpret_cast<float2*>(own + row * FASTWAN_HEAD_DIM + column) =
            make_float2(sums(8 * h + 2 * j, 0, n), sums(8 * h + 2 * j + 1, 0, n));
      }
    }
    if (lane % 4 == 0) {
      float* const statistics = own + FASTWAN_TILE * FASTWAN_HEAD_DIM;
      statistics[row] = softmax.row_max(h);
      statistics[FASTWAN_TILE + row] = softmax.row_sum(h);
    }
  }
}

constexpr int kMergeThreads = 256;
constexpr int kMergeRows = kMergeThreads / 32;

// blockIdx.x is the divided tile, blockIdx.y its rows in eights.
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(MergeArguments const arguments) {
  int const thread = static_cast<int>(threadIdx.x);
  merge_row(arguments, static_cast<int>(blockIdx.x),
            static_cast<int>(blockIdx.y) * kMergeRows + thread / 32,
            thread % 32 * kMergeColumns);
}

}  // namespace fastwan
