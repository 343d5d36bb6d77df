// Enough of CUDA to run the prologue's device code on the host, for tests.
//
// Each thread of a block is a fiber; a barrier or a shuffle hands over to the next fiber until
// all that take part have arrived. Blocks run one after the other. Arithmetic must be compiled
// with -ffp-contract=off.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static  // one block runs at a time

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct Index {
  unsigned x;
};

inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __frsqrt_rn(float a) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
}

inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t select) {
  uint64_t const bytes = (uint64_t{high} << 32) | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    uint64_t const from = (select >> (4 * i)) & 7u;
    result |= static_cast<uint32_t>((bytes >> (8 * from)) & 0xFFu) << (8 * i);
  }
  return result;
}

namespace fastwan::emulation {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 16;

struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  bool started;
  bool finished;
};

struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

inline Fiber fibers[kThreads];
inline std::vector<char> stacks(kThreads* kStack);
inline ucontext_t scheduler_context;
inline jmp_buf scheduler;
inline int current = 0;
inline Barrier block_barrier;
inline Barrier warp_barriers[kThreads / kWarp];
inline uint32_t exchange[kThreads];
inline void (*body)(void const*) = nullptr;
inline void const* argument = nullptr;

inline void yield() {
  if (_setjmp(fibers[current].resume) == 0) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier, int participants) {
  uint64_t const generation = barrier.generation;
  if (++barrier.arrived == participants) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline void enter() {
  body(argument);
  fibers[current].finished = true;
  _longjmp(scheduler, 1);
}

// Run one block of kThreads threads to its end.
inline void run_block(void (*function)(void const*), void const* arguments) {
  body = function;
  argument = arguments;
  for (int thread = 0; thread < kThreads; ++thread) {
    Fiber& fiber = fibers[thread];
    fiber.started = fiber.finished = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.data() + thread * kStack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  static int left;
  for (left = kThreads; left > 0;) {
    for (current = 0; current < kThreads; ++current) {
      Fiber& fiber = fibers[current];
      if (fiber.finished) continue;
      if (_setjmp(scheduler) == 0) {
        if (fiber.started) _longjmp(fiber.resume, 1);
        fiber.started = true;
        setcontext(&fiber.context);
      }
      if (fibers[current].finished) --left;
    }
  }
}

// What thread `source` of this warp gives; every thread of the warp takes part.
inline uint32_t exchanged(uint32_t value, int source) {
  Barrier& barrier = warp_barriers[current / kWarp];
  exchange[current] = value;
  wait(barrier, kWarp);
  uint32_t const received = exchange[source];
  wait(barrier, kWarp);
  return received;
}

}  // namespace fastwan::emulation

inline Index blockIdx{0};
struct ThreadIndex {
  struct X {
    operator unsigned() const { return static_cast<unsigned>(fastwan::emulation::current); }
  } x;
};
inline ThreadIndex threadIdx;

inline void __syncthreads() {
  fastwan::emulation::wait(fastwan::emulation::block_barrier, fastwan::emulation::kThreads);
}

inline float __shfl_xor_sync(unsigned, float value, int distance) {
  namespace e = fastwan::emulation;
  return __uint_as_float(e::exchanged(__float_as_uint(value), e::current ^ distance));
}

inline uint32_t __shfl_sync(unsigned, uint32_t value, int source, int width) {
  namespace e = fastwan::emulation;
  return e::exchanged(value, e::current / width * width + source);
}
