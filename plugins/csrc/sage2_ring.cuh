// Tiles of keys and values on their way to the warps of a block.
//
// The tiles lie in a ring of stages. A stage has two barriers: one completes when the copies of all
// threads have arrived, the other when all warps have read them. So no barrier holds the whole block,
// and a warp may be tiles ahead of another: one's softmax runs beside the other's MMAs.
#pragma once

#include "sage2_tile.cuh"

namespace fastwan::sage2 {

constexpr int kAttentionWarps = 8;
constexpr int kAttentionThreads = 32 * kAttentionWarps;
constexpr int kKeyTileBytes = kKeyTile * kRowBytes;
constexpr int kBarrierBytes = 8;
constexpr int kAhead = 3;  // tiles whose copies are begun before they are needed

// Stages of a ring: what a multiprocessor of the architecture holds beside the queries of one block.
// Compute capability 8.9 and 12.x give a block 99 KB, 9.0 gives it 227 KB.
constexpr int stages(bool wide) { return wide ? 6 : 5; }
constexpr int stage_bytes(bool wide) { return kKeyTileBytes + value_tile_bytes(wide); }
constexpr int ring_bytes(bool wide) {
  return stages(wide) * (stage_bytes(wide) + 2 * kBarrierBytes);
}

constexpr int kStages = stages(kWide);
constexpr int kStageBytes = stage_bytes(kWide);

struct Ring {
  Shared tiles;

  __device__ __forceinline__ Shared keys(int index) const {
    return tiles + index % kStages * kStageBytes;
  }
  __device__ __forceinline__ Shared values(int index) const { return keys(index) + kKeyTileBytes; }
  __device__ __forceinline__ Shared arrived(int index) const {
    return tiles + kStages * kStageBytes + index % kStages * kBarrierBytes;
  }
  __device__ __forceinline__ Shared read(int index) const {
    return arrived(index) + kStages * kBarrierBytes;
  }

  // By every thread, before any other use.
  __device__ __forceinline__ void initialize() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        initialize_barrier(arrived(i), kAttentionThreads);
        initialize_barrier(read(i), kAttentionWarps);
      }
    }
    __syncthreads();
  }

  // Begin the copies of a tile, once the tile that lay there is read. A thread gives the places of its
  // first 16 bytes.
  __device__ __forceinline__ void fetch(int index, uint8_t const* keys_from,
                                        uint8_t const* values_from) const {
    if (index >= kStages) wait_for_phase(read(index), index / kStages - 1);
    copy_tile<kKeyTileBytes>(keys(index) + threadIdx.x * 16, keys_from);
    copy_tile<value_tile_bytes(kWide)>(values(index) + threadIdx.x * 16, values_from);
    arrive_with_copies(arrived(index));
  }

  // Until a tile is here, and with the first one whatever was copied before it.
  __device__ __forceinline__ void wait(int index) const {
    wait_for_phase(arrived(index), index / kStages);
  }

  // This warp has read a tile.
  __device__ __forceinline__ void release(int index, int lane) const {
    warp_barrier();
    if (lane == 0) arrive(read(index));
  }

  // `kBytes` that lie the same way in both places.
  template <int kBytes>
  static __device__ __forceinline__ void copy_tile(Shared to, uint8_t const* from) {
    constexpr int kAtOnce = kAttentionThreads * 16;
    static_assert(kBytes % kAtOnce == 0, "every thread copies as much");
#pragma unroll
    for (int i = 0; i < kBytes; i += kAtOnce) copy_async_to(to + i, from + i);
  }
};

}  // namespace fastwan::sage2
