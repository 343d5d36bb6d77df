// Where the operands of SageAttention2++ lie in its workspace. Plain C++, shared with the emulation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sage2.h"

namespace fastwan::sage2 {

constexpr int64_t kAlignment = 1024;
constexpr int kQueryTile = 128;  // queries of a block
constexpr int kQueryRows = 32;   // queries of a warp, whose scales lie side by side
constexpr int kKeyTile = 64;
constexpr int kSpan = 32;          // tokens of a partial sum
constexpr int kRowBytes = FASTWAN_HEAD_DIM;  // of a query or key
constexpr int kValueBytes = 2;     // a value has in the workspace at most

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline int64_t spans(fastwan_sage2_desc const& desc) {
  return (int64_t{desc.num_tokens} + kSpan - 1) / kSpan;
}

inline bool row_scaled(fastwan_sage2_desc const& desc) {
  return (desc.mode & FASTWAN_SAGE2_ROW_SCALED) != 0;
}

inline uint32_t granularity(fastwan_sage2_desc const& desc) {
  return desc.mode & ~FASTWAN_SAGE2_ROW_SCALED;
}

inline bool per_thread(fastwan_sage2_desc const& desc) {
  return granularity(desc) == FASTWAN_SAGE2_PER_THREAD;
}

// Scales of 32 queries, and of 64 keys.
inline int query_groups(fastwan_sage2_desc const& desc) { return per_thread(desc) ? 8 : 1; }

inline int key_groups(fastwan_sage2_desc const& desc) { return per_thread(desc) ? 4 : 1; }

inline fastwan_sage2_layout make_layout(fastwan_sage2_desc const& desc) {
  fastwan_sage2_layout layout{};
  int64_t const padded = round_up(desc.num_tokens, kQueryTile);
  int64_t const rows = int64_t{desc.batch} * desc.num_heads * padded;
  int64_t const channels = int64_t{desc.batch} * desc.num_heads * FASTWAN_HEAD_DIM;
  int64_t constexpr kFloat = sizeof(float);
  int64_t offset = 0;
  auto take = [&offset](int64_t bytes) {
    int64_t const begin = offset;
    offset = round_up(offset + bytes, kAlignment);
    return begin;
  };
  layout.padded_tokens = padded;
  layout.q = take(rows * kRowBytes);
  layout.q_scale = take(rows / kQueryRows * query_groups(desc) * kFloat);
  layout.k = take(rows * kRowBytes);
  layout.k_scale = take(rows / kKeyTile * key_groups(desc) * kFloat);
  layout.v = take(rows * FASTWAN_HEAD_DIM * kValueBytes);
  layout.inverse_norm = take(2 * desc.batch * padded * kFloat);
  layout.k_sum = take(spans(desc) * channels * kFloat);
  layout.v_max = take(spans(desc) * channels * kFloat);
  layout.k_mean = take(channels * kFloat);
  layout.v_factor = take(channels * kFloat);
  layout.v_scale = take(channels * kFloat);
  layout.total = offset;
  return layout;
}

// What the kernels read and write; pointers into the tensors and the workspace.
struct Buffers {
  uint16_t const* qkv;
  float const* qkv_scale;
  uint16_t const* qkv_bias;
  uint16_t const* q_norm;
  uint16_t const* k_norm;
  float const* rope_cos;
  float const* rope_sin;
  float const* row_scale;  // null where rows have none
  uint8_t* q;
  float* q_scale;
  uint8_t* k;
  float* k_scale;
  uint8_t* v;
  float* inverse_norm;
  float* k_sum;
  float* v_max;
  float* k_mean;
  float* v_factor;
  float* v_scale;
  uint16_t* out;
};

inline Buffers bind(fastwan_sage2_desc const& desc, fastwan_sage2_layout const& layout,
                    void const* const* inputs, void* const* outputs, void* workspace) {
  auto* const base = static_cast<uint8_t*>(workspace);
  auto floats = [base](int64_t offset) { return reinterpret_cast<float*>(base + offset); };
  Buffers buffers{};
  if (inputs != nullptr) {
    buffers.qkv = static_cast<uint16_t const*>(inputs[0]);
    buffers.qkv_scale = static_cast<float const*>(inputs[1]);
    buffers.qkv_bias = static_cast<uint16_t const*>(inputs[2]);
    buffers.q_norm = static_cast<uint16_t const*>(inputs[3]);
    buffers.k_norm = static_cast<uint16_t const*>(inputs[4]);
    buffers.rope_cos = static_cast<float const*>(inputs[5]);
    buffers.rope_sin = static_cast<float const*>(inputs[6]);
    if (row_scaled(desc)) buffers.row_scale = static_cast<float const*>(inputs[7]);
  }
  buffers.q = base + layout.q;
  buffers.q_scale = floats(layout.q_scale);
  buffers.k = base + layout.k;
  buffers.k_scale = floats(layout.k_scale);
  buffers.v = base + layout.v;
  buffers.inverse_norm = floats(layout.inverse_norm);
  buffers.k_sum = floats(layout.k_sum);
  buffers.v_max = floats(layout.v_max);
  buffers.k_mean = floats(layout.k_mean);
  buffers.v_factor = floats(layout.v_factor);
  buffers.v_scale = floats(layout.v_scale);
  buffers.out = static_cast<uint16_t*>(outputs[0]);
  return buffers;
}

// Byte of piece `piece` (16 bytes) of row `row` in a tile whose rows have 128 bytes.
constexpr int swizzled(int row, int piece) { return row * 128 + ((piece ^ (row % 8)) * 16); }

// The same for rows of 64 bytes, two of which share a line.
constexpr int swizzled_half(int row, int piece) {
  return row * 64 + ((piece ^ (row / 2 % 4)) * 16);
}

}  // namespace fastwan::sage2
