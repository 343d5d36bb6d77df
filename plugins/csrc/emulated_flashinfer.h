// What FlashInfer's attention asks of compute capability 12.x, for a GPU of 9.0: the FP4 MMA, the
// conversions to e2m1 and e4m3, and the TMA type of 4-bit numbers. Its headers stay as they are.
//
// Included by attention_flashinfer.cu when FASTWAN_EMULATED is 1, before the kernel's main loop.
#pragma once

#include <flashinfer/attention/sm120/nvfp4_attention_sm120/kernel/traits.h>
#include <flashinfer/attention/sm120/nvfp4_attention_sm120/quantization/fp4_convert.cuh>

namespace fastwan {
// Its sum over all keys stays in the MMA.
inline constexpr bool kSumsApart = true;
}  // namespace fastwan

#include "emulated_gemm.h"
#include "fp4.cuh"

namespace nvfp4_attention {

// In place of packed_float_to_e2m1 and packed_float_to_ue4m3, which trap below compute capability
// 10.0. Their one use is for probabilities and their scales: none is negative.
CUTLASS_DEVICE void emulated_float_to_e2m1(float f0, float f1, float f2, float f3, float f4,
                                           float f5, float f6, float f7, uint32_t& out) {
  out = ::fastwan::to_e2m1x8_unsigned({f0, f1, f2, f3, f4, f5, f6, f7});
}

CUTLASS_DEVICE void emulated_float_to_ue4m3(float f0, float f1, float f2, float f3,
                                            uint32_t& out) {
  out = ::fastwan::to_e4m3(f0) | (::fastwan::to_e4m3(f1) << 8) | (::fastwan::to_e4m3(f2) << 16) |
        (::fastwan::to_e4m3(f3) << 24);
}

}  // namespace nvfp4_attention

#define packed_float_to_e2m1 emulated_float_to_e2m1
#define packed_float_to_ue4m3 emulated_float_to_ue4m3
