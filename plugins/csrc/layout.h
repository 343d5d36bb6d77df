// Where the packed operands lie in a region's workspace. Plain C++, shared with the emulation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fastwan_plugins.h"
#include "key_split.h"

// 1 builds the library that emulates the FP4 MMA on compute capability 9.0.
#ifndef FASTWAN_EMULATED
#define FASTWAN_EMULATED 0
#endif

namespace fastwan {

constexpr int64_t kAlignment = 1024;

// A row of k, and the codes of one tile of tokens in a channel of v, are pieces of 64 bytes, one
// after the other. The kernel steps through v by 128 elements for a tile; where TMA counts bytes,
// tiles must be 128 bytes apart, and rows of k lie in the gaps. Both take as much memory.
constexpr int64_t kPieceBytes = FASTWAN_HEAD_DIM / 2;
static_assert(kPieceBytes == FASTWAN_TILE / 2);
constexpr int64_t kPiecePitch = FASTWAN_EMULATED ? 2 * kPieceBytes : kPieceBytes;

inline int64_t padded_tokens(int64_t tokens) {
  return (tokens + FASTWAN_TILE - 1) / FASTWAN_TILE * FASTWAN_TILE;
}

inline fastwan_sage_layout make_layout(fastwan_region_desc const& desc) {
  fastwan_sage_layout layout{};
  layout.padded_tokens = padded_tokens(desc.num_tokens);
  int64_t const rows = int64_t{desc.batch} * desc.num_heads * layout.padded_tokens;
  int64_t offset = 0;
  auto take = [&offset](int64_t bytes) {
    int64_t const begin = offset;
    offset = (offset + bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  };
  layout.q = take(rows * (FASTWAN_HEAD_DIM / 2));
  layout.q_scale = take(rows * (FASTWAN_HEAD_DIM / 16));
  if (FASTWAN_EMULATED) {
    layout.v = take(rows * kPiecePitch);
    layout.k = layout.v + kPieceBytes;
  } else {
    layout.k = take(rows * kPiecePitch);
  }
  layout.k_scale = take(rows * (FASTWAN_HEAD_DIM / 16));
  if (!FASTWAN_EMULATED) layout.v = take(rows * kPiecePitch);
  layout.v_scale = take(rows * (FASTWAN_HEAD_DIM / 16));
  layout.delta_s = take(rows * static_cast<int64_t>(sizeof(float)));
  take(split_bytes(static_cast<int>(layout.padded_tokens / FASTWAN_TILE)));
  layout.total = offset;
  return layout;
}

// What both kernels read and write; pointers into the tensors and the workspace.
struct SageBuffers {
  uint16_t const* qkv;
  float const* qkv_scale;
  uint16_t const* qkv_bias;
  uint16_t const* q_norm;
  uint16_t const* k_norm;
  float const* rope_cos;
  float const* rope_sin;
  uint8_t* q;
  uint8_t* q_scale;
  uint8_t* k;
  uint8_t* k_scale;
  uint8_t* v;
  uint8_t* v_scale;
  float* delta_s;
  float* slots;  // of divided keys (key_split.h)
  uint16_t* out;
};

inline SageBuffers bind(fastwan_sage_layout const& layout, void const* const* inputs,
                        void* const* outputs, void* workspace) {
  auto* base = static_cast<uint8_t*>(workspace);
  SageBuffers buffers{};
  if (inputs != nullptr) {
    buffers.qkv = static_cast<uint16_t const*>(inputs[0]);
    buffers.qkv_scale = static_cast<float const*>(inputs[1]);
    buffers.qkv_bias = static_cast<uint16_t const*>(inputs[2]);
    buffers.q_norm = static_cast<uint16_t const*>(inputs[3]);
    buffers.k_norm = static_cast<uint16_t const*>(inputs[4]);
    buffers.rope_cos = static_cast<float const*>(inputs[5]);
    buffers.rope_sin = static_cast<float const*>(inputs[6]);
  }
  buffers.q = base + layout.q;
  buffers.q_scale = base + layout.q_scale;
  buffers.k = base + layout.k;
  buffers.k_scale = base + layout.k_scale;
  buffers.v = base + layout.v;
  buffers.v_scale = base + layout.v_scale;
  buffers.delta_s = reinterpret_cast<float*>(base + layout.delta_s);
  int64_t const slots = split_bytes(static_cast<int>(layout.padded_tokens / FASTWAN_TILE));
  buffers.slots = reinterpret_cast<float*>(base + layout.total - slots);
  buffers.out = static_cast<uint16_t*>(outputs[0]);
  return buffers;
}

}  // namespace fastwan
