// The MMAs of SageAttention2++ on the host, as `host_emulation.h` runs threads. For tests.
#pragma once

#include "glue_emulation.h"
#include "host_tensor_core.h"

namespace fastwan::sage2::emulation {

namespace host = fastwan::emulation;

inline uint32_t operands[host::kThreads][6];

// Give A and B to the warp; every thread of it takes part. `finish` must follow.
inline uint32_t const (*give(uint32_t const (&a)[4], uint32_t b0, uint32_t b1))[6] {
  uint32_t* const mine = operands[host::current];
  for (int i = 0; i < 4; ++i) mine[i] = a[i];
  mine[4] = b0;
  mine[5] = b1;
  host::wait(host::warp_barriers[host::current / host::kWarp], host::kWarp);
  return operands + host::current / host::kWarp * host::kWarp;
}

inline void finish() { host::wait(host::warp_barriers[host::current / host::kWarp], host::kWarp); }

// Sum of products for element i of this lane's accumulators; `Multiply` gives a register's worth.
template <typename Sum, typename Multiply>
Sum sum_of_products(uint32_t const (*warp)[6], int i, Sum sum, Multiply multiply) {
  int const lane = host::current % host::kWarp;
  int const row = lane / 4 * 4, column = (lane % 4 * 2 + i % 2) * 4;  // first lanes of a quad
  for (int quad = 0; quad < 4; ++quad) {
    for (int half = 0; half < 2; ++half) {
      sum += multiply(warp[row + quad][2 * half + i / 2], warp[column + quad][4 + half]);
    }
  }
  return sum;
}

inline int64_t int8_products(uint32_t x, uint32_t y) {
  int64_t sum = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    sum += int64_t{static_cast<int8_t>(x >> shift)} * static_cast<int8_t>(y >> shift);
  }
  return sum;
}

inline double e4m3_products(uint32_t x, uint32_t y) {
  double sum = 0.0;
  for (int shift = 0; shift < 32; shift += 8) {
    sum += host::from_half(host::half_of_e4m3((x >> shift) & 0xFFu)) *
           host::from_half(host::half_of_e4m3((y >> shift) & 0xFFu));
  }
  return sum;
}

inline double half_products(uint32_t x, uint32_t y) {
  return host::from_half(x & 0xFFFFu) * host::from_half(y & 0xFFFFu) +
         host::from_half(x >> 16) * host::from_half(y >> 16);
}

inline void mma_int8(uint32_t (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1,
                     uint32_t const (&c)[4]) {
  auto const* warp = give(a, b0, b1);
  uint32_t sums[4];
  for (int i = 0; i < 4; ++i) {
    sums[i] = static_cast<uint32_t>(sum_of_products(warp, i, int64_t{c[i]}, int8_products));
  }
  finish();
  for (int i = 0; i < 4; ++i) d[i] = sums[i];
}

// Sums of fp16: exact products and sums, rounded once to nearest even.
template <typename Multiply>
void mma_to_half(uint32_t (&d)[2], uint32_t const (&a)[4], uint32_t b0, uint32_t b1,
                 Multiply multiply) {
  auto const* warp = give(a, b0, b1);
  for (int i = 0; i < 4; ++i) {
    int const shift = i % 2 * 16;
    double const before = host::from_half((d[i / 2] >> shift) & 0xFFFFu);
    uint32_t const rounded = host::to_half(sum_of_products(warp, i, before, multiply));
    d[i / 2] = (d[i / 2] & ~(0xFFFFu << shift)) | (rounded << shift);
  }
  finish();
}

inline void mma_e4m3(uint32_t (&d)[2], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  mma_to_half(d, a, b0, b1, e4m3_products);
}

inline void mma_half(uint32_t (&d)[2], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  mma_to_half(d, a, b0, b1, half_products);
}

// A barrier in 8 bytes of a block's memory.
struct CountedBarrier {
  int16_t count, missing;
  int32_t phase;
};

inline void initialize_barrier(uint8_t* at, int count) {
  auto const wide = static_cast<int16_t>(count);
  *reinterpret_cast<CountedBarrier*>(at) = {wide, wide, 0};
}

inline void arrive(uint8_t* at) {
  auto& barrier = *reinterpret_cast<CountedBarrier*>(at);
  if (--barrier.missing > 0) return;
  barrier.missing = barrier.count;
  ++barrier.phase;
}

inline void wait_for_phase(uint8_t const* at, int phase) {
  while (reinterpret_cast<CountedBarrier const volatile*>(at)->phase % 2 == phase % 2) host::yield();
}

}  // namespace fastwan::sage2::emulation
