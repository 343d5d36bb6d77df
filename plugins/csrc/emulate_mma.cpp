// The widening of FP4 operands and the emulated MMA on the host, for tests.
#define FASTWAN_HOST_EMULATION
#include "emulated_mma.cuh"

namespace {

// Registers of every lane of a warp, as emulated_mma.cuh numbers them.
struct WarpRegisters {
  uint32_t const* a;        // [32, 4]
  uint32_t const* b;        // [32, 8]
  uint32_t const* scale_a;  // [32]
  uint32_t const* scale_b;  // [32]
  float* d;                 // [32, 16]
  bool apart;
};

void run(void const* argument) {
  auto const& warp = *static_cast<WarpRegisters const*>(argument);
  unsigned const lane = threadIdx.x;
  if (lane >= fastwan::emulation::kWarp) return;
  auto d = [&](int i) -> float& { return warp.d[lane * 16 + static_cast<unsigned>(i)]; };
  auto a = [&](int i) { return warp.a[lane * 4 + static_cast<unsigned>(i)]; };
  auto b = [&](int i) { return warp.b[lane * 8 + static_cast<unsigned>(i)]; };
  auto const rows = fastwan::widen_rows(a, warp.scale_a[lane]);
  if (warp.apart) {
    fastwan::emulated_mma<true>(d, rows, b, warp.scale_b[lane]);
  } else {
    fastwan::emulated_mma<false>(d, rows, b, warp.scale_b[lane]);
  }
}

}  // namespace

// Eight codes times the scale in byte `byte` of `scales`: four pairs of fp16 numbers.
extern "C" void fastwan_emulate_widen(uint32_t codes, uint32_t scales, uint32_t byte,
                                      uint32_t* pairs) {
  uint32_t const select = byte | (byte << 4) | (byte << 8) | (byte << 12);
  uint32_t out[4];
  fastwan::widen(codes, fastwan::widen_scales(scales, select).low, out);
  for (int i = 0; i < 4; ++i) pairs[i] = out[i];
}

// Codes of values that are not negative, eight a word.
extern "C" void fastwan_emulate_e2m1_unsigned(float const* values, uint32_t* words,
                                              int64_t count) {
  for (int64_t word = 0; word < count / 8; ++word) {
    float eight[8];
    for (int i = 0; i < 8; ++i) eight[i] = values[word * 8 + i];
    words[word] = fastwan::to_e2m1x8_unsigned(eight);
  }
}

// Adds to d what one warp's MMA gives.
extern "C" void fastwan_emulate_mma(uint32_t const* a, uint32_t const* b, uint32_t const* scale_a,
                                    uint32_t const* scale_b, float* d, int apart) {
  WarpRegisters const warp{a, b, scale_a, scale_b, d, apart != 0};
  fastwan::emulation::run_block(run, &warp);
}
