// fp16 arithmetic and one fp16 MMA on the host, as `host_emulation.h` runs threads. For tests.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_emulation.h"

namespace fastwan::emulation {

// Value of an fp16 number.
inline double from_half(uint32_t bits) {
  int const exponent = static_cast<int>((bits >> 10) & 31u);
  double const fraction = static_cast<double>(bits & 0x3FFu) / 1024.0;
  double magnitude = std::ldexp(exponent == 0 ? fraction : 1.0 + fraction,
                                exponent == 0 ? -14 : exponent - 15);
  if (exponent == 31) magnitude = fraction == 0.0 ? HUGE_VAL : NAN;
  return (bits & 0x8000u) != 0u ? -magnitude : magnitude;
}

// fp16 number nearest to a value, to even on a tie.
inline uint32_t to_half(double value) {
  uint32_t const sign = std::signbit(value) ? 0x8000u : 0u;
  double const magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7FFFu;
  if (magnitude < 6.103515625e-05) {  // subnormal: multiples of 2^-24
    return sign | static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  }
  if (magnitude >= 65520.0) return sign | 0x7C00u;
  int exponent = 0;
  double const mantissa = std::frexp(magnitude, &exponent);  // within 1/2 .. 1
  auto const steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(mantissa, 11)));
  return sign | (static_cast<uint32_t>(exponent + 13) * 1024u + steps);
}

inline uint32_t half2_product(uint32_t a, uint32_t b) {
  uint32_t const low = to_half(from_half(a & 0xFFFFu) * from_half(b & 0xFFFFu));
  return low | (to_half(from_half(a >> 16) * from_half(b >> 16)) << 16);
}

inline uint32_t half_of_e4m3(uint32_t code) {
  if ((code & 0x7Fu) == 0x7Fu) return 0x7FFFu;
  // Seven bits up, exponent and mantissa are those of fp16, whose bias is larger by 8.
  uint32_t const scaled = (code & 0x7Fu) << 7;
  return to_half(std::ldexp(from_half(scaled), 8)) | ((code & 0x80u) << 8);
}

inline uint32_t half2_of_e4m3x2(uint32_t codes) {
  return half_of_e4m3(codes & 0xFFu) | (half_of_e4m3(codes >> 8) << 16);
}

inline uint32_t fragments[kThreads][6];

// mma.m16n8k16 with fp16 operands and fp32 sums; every thread of the warp takes part.
inline void mma_m16n8k16(float* d[4], uint32_t const (&a)[4], uint32_t const (&b)[2]) {
  Barrier& barrier = warp_barriers[current / kWarp];
  for (int i = 0; i < 4; ++i) fragments[current][i] = a[i];
  for (int i = 0; i < 2; ++i) fragments[current][4 + i] = b[i];
  wait(barrier, kWarp);
  int const lane = current % kWarp;
  uint32_t const(*warp)[6] = fragments + (current - lane);
  for (int i = 0; i < 4; ++i) {
    int const row = lane / 4 * 4, column = (lane % 4 * 2 + i % 2) * 4;  // first lanes of a quad
    double sum = 0.0;
    for (int quad = 0; quad < 4; ++quad) {
      for (int half = 0; half < 2; ++half) {
        uint32_t const x = warp[row + quad][2 * half + i / 2], y = warp[column + quad][4 + half];
        sum += from_half(x & 0xFFFFu) * from_half(y & 0xFFFFu);
        sum += from_half(x >> 16) * from_half(y >> 16);
      }
    }
    *d[i] = static_cast<float>(static_cast<double>(*d[i]) + sum);
  }
  wait(barrier, kWarp);
}

}  // namespace fastwan::emulation
