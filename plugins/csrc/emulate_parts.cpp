// The division of keys and the merge of its parts on the host, for tests.
#define FASTWAN_HOST_EMULATION
#include "host_emulation.h"

#include "merge_parts.cuh"

// Tiles that see all keys, parts of the others, and the first tile of keys of each part (15 of
// them at most, the end behind the last).
extern "C" void fastwan_emulate_key_split(int tiles, int key_tiles, int processors, int* whole,
                                          int* parts, int* bounds) {
  fastwan::KeySplit const split = fastwan::key_split(tiles, key_tiles, processors);
  *whole = split.whole;
  *parts = split.parts;
  for (int part = 0; part <= split.parts; ++part) {
    bounds[part] = fastwan::first_key_tile(key_tiles, split.parts, part);
  }
}

extern "C" int64_t fastwan_emulate_split_bytes(int key_tiles) {
  return fastwan::split_bytes(key_tiles);
}

// The rows of `tiles` divided tiles, into [B, L, 128 heads] bf16.
extern "C" void fastwan_emulate_merge_tiles(float const* slots, uint16_t* out, int first_tile,
                                            int tiles, int query_tiles, int heads, int parts,
                                            int num_tokens, int length, float c) {
  fastwan::MergeArguments const arguments{slots, out,   first_tile, query_tiles, heads,
                                          parts, num_tokens, length,     c};
  for (int tile = 0; tile < tiles; ++tile) {
    for (int row = 0; row < FASTWAN_TILE; ++row) {
      for (int column = 0; column < FASTWAN_HEAD_DIM; column += fastwan::kMergeColumns) {
        fastwan::merge_row(arguments, tile, row, column);
      }
    }
  }
}

// One tile [128, 128] fp32 of `parts` slots.
extern "C" void fastwan_emulate_merge(float const* slots, int parts, float c, float* out) {
  for (int row = 0; row < FASTWAN_TILE; ++row) {
    for (int column = 0; column < FASTWAN_HEAD_DIM; column += fastwan::kMergeColumns) {
      float values[fastwan::kMergeColumns];
      fastwan::merge_parts(slots, parts, row, column, c, values);
      for (int i = 0; i < fastwan::kMergeColumns; ++i) {
        out[row * FASTWAN_HEAD_DIM + column + i] = values[i];
      }
    }
  }
}
