// Normal numbers on the host. Each operation rounds as it is written: -ffp-contract=off.
#include "normals.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// A loop with a call in it is not made for wider registers.
#ifdef _MSC_VER
#define FASTWAN_INLINE __forceinline
#else
#define FASTWAN_INLINE inline __attribute__((always_inline))
#endif

namespace {

constexpr int kWords = 624;
constexpr int kShift = 397;
constexpr int kBlock = 16;           // numbers that are made of each other
constexpr int kHalf = kBlock / 2;
constexpr int kPairs = 128 * kHalf;  // made at a time, in a core's cache
constexpr float kTwoPi = 6.283185307179586f;

FASTWAN_INLINE float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FASTWAN_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

FASTWAN_INLINE float fma(float a, float b, float c) { return std::fma(a, b, c); }

FASTWAN_INLINE uint32_t twisted(uint32_t high, uint32_t low, uint32_t far) {
  uint32_t const mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
  return far ^ (mixed >> 1) ^ ((0u - (low & 1u)) & 0x9908b0dfu);
}

// The next 624 words. A word needs the one 397 further on, or 227 before: no loop reads what it writes.
void twist(uint32_t* words) {
  constexpr int kLate = kWords - kShift;
  uint32_t before[kWords + 1];
  std::memcpy(before, words, kWords * sizeof *words);
  for (int i = 0; i < kLate; ++i) {
    words[i] = twisted(before[i], before[i + 1], before[i + kShift]);
  }
  uint32_t early[kLate];
  for (int begin = kLate; begin < kWords; begin += kLate) {
    int const count = std::min(kLate, kWords - begin);
    std::memcpy(early, words + begin - kLate, sizeof early);
    before[kWords] = words[0];
    for (int i = 0; i < count; ++i) {
      words[begin + i] = twisted(before[begin + i], before[begin + i + 1], early[i]);
    }
  }
}

void temper(uint32_t const* words, int count, uint32_t* numbers) {
  for (int i = 0; i < count; ++i) {
    uint32_t y = words[i];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    numbers[i] = y ^ (y >> 18);
  }
}

void draw_bits(fastwan_normals& normals, uint32_t* bits, int count) {
  while (count > 0) {
    if (normals.used == kWords) {
      twist(normals.words);
      normals.used = 0;
    }
    int const some = std::min<int>(count, kWords - normals.used);
    temper(normals.words + normals.used, some, bits);
    normals.used += some;
    bits += some;
    count -= some;
  }
}

// Natural logarithm of a normal number in (0, 1].
FASTWAN_INLINE float log_of(float u) {
  uint32_t const bits = as_bits(u);
  float const mantissa = as_float((bits & 0x007fffffu) | 0x3f000000u);
  bool const low = mantissa < 0.70710678118654752440f;
  float const e = static_cast<float>(static_cast<int32_t>(bits >> 23) - 126 - (low ? 1 : 0));
  float const x = (mantissa - 1.0f) + (low ? mantissa : 0.0f);
  float const square = x * x;
  float y = fma(7.0376836292e-2f, x, -1.1514610310e-1f);
  y = fma(y, x, 1.1676998740e-1f);
  y = fma(y, x, -1.2420140846e-1f);
  y = fma(y, x, 1.4249322787e-1f);
  y = fma(y, x, -1.6668057665e-1f);
  y = fma(y, x, 2.0000714765e-1f);
  y = fma(y, x, -2.4999993993e-1f);
  y = fma(y, x, 3.3333331174e-1f);
  y = fma(y * x, square, e * -2.12194440e-4f);
  y -= square * 0.5f;
  return fma(0.693359375f, e, x + y);
}

// Of an angle in [0, 2 pi).
FASTWAN_INLINE void sine_cosine(float angle, float& sine_of, float& cosine_of) {
  int32_t const octant = (static_cast<int32_t>(angle * 1.2732395447351628f) + 1) & ~1;
  float const quarters = static_cast<float>(octant);
  float x = fma(-0.78515625f, quarters, angle);
  x = fma(-2.4187564849853515625e-4f, quarters, x);
  x = fma(-3.77489497744594108e-8f, quarters, x);
  float const z = x * x;
  float cosine = fma(2.443315711809948e-5f, z, -1.388731625493765e-3f);
  cosine = fma(cosine, z, 4.166664568298827e-2f) * z;
  cosine = fma(cosine, z, z * -0.5f) + 1.0f;
  float sine = fma(-1.9515295891e-4f, z, 8.3321608736e-3f);
  sine = fma(sine, z, -1.6666654611e-1f) * z;
  sine = fma(sine, x, x);
  bool const exchanged = (octant & 2) != 0;
  uint32_t const of_sine = as_bits(exchanged ? cosine : sine);
  uint32_t const of_cosine = as_bits(exchanged ? sine : cosine);
  uint32_t const sine_sign = static_cast<uint32_t>(octant & 4) << 29;
  uint32_t const cosine_sign = static_cast<uint32_t>(~(octant - 2) & 4) << 29;
  sine_of = as_float(of_sine ^ sine_sign);
  cosine_of = as_float(of_cosine ^ cosine_sign);
}

// The nearest bf16 value of a finite number, ties to even; a mean of 0 is added, which makes +0 of -0.
FASTWAN_INLINE float rounded(float number) {
  uint32_t const bits = as_bits(number + 0.0f);
  return as_float((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

// In a block of 16, eight radii come first and then the angles.
FASTWAN_INLINE void box_muller_of(uint32_t const* bits, int pairs, float* numbers) {
  float first[kPairs], second[kPairs];
  for (int block = 0; block < pairs / kHalf; ++block) {
    for (int i = 0; i < kHalf; ++i) {
      constexpr float kUnit = 1.0f / (1 << 24);
      uint32_t const* const from = bits + block * kBlock + i;
      first[block * kHalf + i] = 1.0f - static_cast<float>(from[0] & 0xffffffu) * kUnit;
      second[block * kHalf + i] = static_cast<float>(from[kHalf] & 0xffffffu) * kUnit * kTwoPi;
    }
  }
  for (int i = 0; i < pairs; ++i) {
    float const radius = std::sqrt(-2.0f * log_of(first[i]));
    float sine, cosine;
    sine_cosine(second[i], sine, cosine);
    first[i] = rounded(radius * cosine);
    second[i] = rounded(radius * sine);
  }
  for (int block = 0; block < pairs / kHalf; ++block) {
    std::memcpy(numbers + block * kBlock, first + block * kHalf, kHalf * sizeof *first);
    std::memcpy(numbers + block * kBlock + kHalf, second + block * kHalf, kHalf * sizeof *second);
  }
}

// The same bytes on a processor with wider registers and fused multiply-adds, in less time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(FASTWAN_NO_AVX2)
__attribute__((target("avx2,fma"))) void box_muller_avx2(uint32_t const* bits, int pairs,
                                                         float* numbers) {
  box_muller_of(bits, pairs, numbers);
}

void box_muller(uint32_t const* bits, int pairs, float* numbers) {
  static bool const wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (wide) return box_muller_avx2(bits, pairs, numbers);
  box_muller_of(bits, pairs, numbers);
}
#else
void box_muller(uint32_t const* bits, int pairs, float* numbers) {
  box_muller_of(bits, pairs, numbers);
}
#endif

void draw_blocks(fastwan_normals& normals, float* numbers, int64_t count) {
  uint32_t bits[2 * kPairs];
  while (count > 0) {
    int const some = static_cast<int>(std::min<int64_t>(count, 2 * kPairs));
    draw_bits(normals, bits, some);
    box_muller(bits, some / 2, numbers);
    numbers += some;
    count -= some;
  }
}

// A number of fewer than 16: in fp64, and the second of a pair is kept.
double draw_one(fastwan_normals& normals) {
  if (normals.has_kept) {
    normals.has_kept = 0;
    return normals.kept;
  }
  uint32_t bits[4];
  draw_bits(normals, bits, 4);
  constexpr double kUnit = 1.0 / (1ll << 53);
  uint64_t const mask = (1ull << 53) - 1;
  double const first = ((static_cast<uint64_t>(bits[0]) << 32 | bits[1]) & mask) * kUnit;
  double const second = ((static_cast<uint64_t>(bits[2]) << 32 | bits[3]) & mask) * kUnit;
  double const radius = std::sqrt(-2.0 * std::log1p(-second));
  double const theta = 2.0 * 3.141592653589793 * first;
  normals.kept = radius * std::sin(theta);
  normals.has_kept = 1;
  return radius * std::cos(theta);
}

}  // namespace

fastwan_status fastwan_normals_seed(fastwan_normals* normals, uint32_t seed) {
  if (normals == nullptr) return FASTWAN_INVALID_ARGUMENT;
  *normals = {};
  normals->words[0] = seed;
  for (uint32_t i = 1; i < kWords; ++i) {
    uint32_t const last = normals->words[i - 1];
    normals->words[i] = 1812433253u * (last ^ (last >> 30)) + i;
  }
  normals->used = kWords;
  return FASTWAN_OK;
}

fastwan_status fastwan_normals_draw(fastwan_normals* normals, float* numbers, int64_t count) {
  if (normals == nullptr || numbers == nullptr || count < 0 || normals->used > kWords) {
    return FASTWAN_INVALID_ARGUMENT;
  }
  if (count < kBlock) {
    for (int64_t i = 0; i < count; ++i) {
      numbers[i] = rounded(static_cast<float>(draw_one(*normals)));
    }
    return FASTWAN_OK;
  }
  int64_t const whole = count - count % kBlock;
  draw_blocks(*normals, numbers, whole);
  // The last block is drawn anew, and writes over a part of the one before.
  if (whole < count) draw_blocks(*normals, numbers + count - kBlock, kBlock);
  return FASTWAN_OK;
}
