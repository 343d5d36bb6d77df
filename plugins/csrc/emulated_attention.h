// What fastvideo-kernel's attention asks of compute capability 12.x, for a GPU of 9.0: the FP4 MMA,
// the conversion to e2m1, and the TMA type of 4-bit numbers. Its headers stay as they are;
// everything else in them runs on Hopper unchanged.
//
// Included by attention.cu when FASTWAN_EMULATED is 1, instead of kernel_traits.h and before
// kernel_ws.h.
#pragma once

#include "kernel_traits.h"
#include "utils.h"

namespace fastwan {
// It adds the sum of each tile of keys itself.
inline constexpr bool kSumsApart = false;
}  // namespace fastwan

#include "emulated_gemm.h"

namespace flash {

// In place of packed_float_to_e2m1, whose one use is for probabilities: none is negative.
CUTLASS_DEVICE void emulated_float_to_e2m1(float f0, float f1, float f2, float f3, float f4,
                                           float f5, float f6, float f7, uint32_t& out) {
  out = ::fastwan::to_e2m1x8_unsigned({f0, f1, f2, f3, f4, f5, f6, f7});
}

}  // namespace flash

#define packed_float_to_e2m1 emulated_float_to_e2m1
