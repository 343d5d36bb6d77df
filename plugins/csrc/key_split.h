// Which tiles of queries have their keys divided, so that the last wave of blocks ends with the
// others. Plain C++; SageAttention3.key_split is the same in Python, and a test compares them.
//
// A multiprocessor runs one block, which takes one tile of 128 queries and a head after the other.
// Where the tiles are no multiple of the multiprocessors, a last wave has some tiles and leaves the
// other multiprocessors idle. If it fills no more than half of them, the keys of each of its tiles
// are divided into parts, one a block.
#pragma once

#include <cstdint>

#include "fastwan_plugins.h"

namespace fastwan {

// Parts whose descriptors fit the 32,764 bytes of a launch.
constexpr int kMaxParts = 14;
// A part has at least this many tiles of 128 keys: it reads a tile of queries and writes sums too.
constexpr int kLeastKeyTiles = 8;
// Parts whose sums the workspace has room for.
constexpr int kMaxSlots = 192;

// Floats of one part: sums [128, 128], then maximum and sum of each row.
constexpr int64_t kSlotFloats = FASTWAN_TILE * FASTWAN_HEAD_DIM + 2 * FASTWAN_TILE;

struct KeySplit {
  int whole;  // tiles of queries that see all keys in one block: the first ones
  int parts;  // of each of the others; 1 where none is divided
};

// First tile of keys of a part; `part` = `parts` gives the end. The last part has no more than the
// others: its last tile may be padded.
inline int first_key_tile(int key_tiles, int parts, int part) {
  int64_t const before = int64_t{key_tiles} * part + parts - 1;
  return static_cast<int>(before / parts);
}

inline int smaller(int a, int b) { return a < b ? a : b; }

inline KeySplit key_split(int tiles, int key_tiles, int processors) {
  int const rest = tiles % processors;
  if (rest == 0) return {tiles, 1};
  int parts = smaller(processors / rest, kMaxParts);
  parts = smaller(parts, key_tiles / kLeastKeyTiles);
  parts = smaller(parts, kMaxSlots / rest);
  return parts < 2 ? KeySplit{tiles, 1} : KeySplit{tiles - rest, parts};
}

// Bytes of sums in the workspace, on any GPU.
inline int64_t split_bytes(int key_tiles) {
  bool const divisible = key_tiles >= 2 * kLeastKeyTiles;
  return divisible ? kMaxSlots * kSlotFloats * static_cast<int64_t>(sizeof(float)) : 0;
}

}  // namespace fastwan
