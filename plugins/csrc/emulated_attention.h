// What the published attention asks of compute capability 12.x, for a GPU of 9.0: the FP4 MMA, the
// conversion to e2m1, and the TMA type of 4-bit numbers. Its headers stay as they are; everything
// else in them runs on Hopper unchanged.
//
// Included by attention.cu when FASTWAN_EMULATED is 1, instead of kernel_traits.h and before
// kernel_ws.h.
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
#error "the emulated attention is for compute capability 9.0; leave FASTWAN_EMULATED out for others"
#endif

#include <cutlass/arch/reg_reconfig.h>

#include "emulated_mma.cuh"
#include "kernel_traits.h"
#include "utils.h"

namespace cute {

// The kernel's gemm of one slice along k, for the atom that kernel_traits.h names: this overload is
// more special than CuTe's own, which would call the atom's instruction.
template <class ThreadLayout, class Permutation, class TA, class ALayout, class TB, class BLayout,
          class TC, class CLayout>
CUTE_DEVICE void gemm(TiledMMA<MMA_Atom<SM120::BLOCKSCALED::SM120_16x32x64_TN_VS_NVFP4>,
                               ThreadLayout, Permutation> const&,
                      Tensor<TA, ALayout> const& A_zipped, Tensor<TB, BLayout> const& B_zipped,
                      Tensor<TC, CLayout>& C) {
  CUTE_UNROLL
  for (int m = 0; m < size<1>(A_zipped); ++m) {
    auto [A, SFA] = unzip_tensor(A_zipped(_, m));
    Tensor codes = recast<uint32_t>(A);
    // Q is the same for every tile of keys. Hidden from the compiler, which would keep what
    // follows from it in registers that it does not have.
    uint32_t own[4];
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      own[i] = codes(i);
      asm volatile("" : "+r"(own[i]));
    }
    auto const rows = ::fastwan::widen_rows([&](int i) { return own[i]; },
                                            recast<uint32_t>(filter_zeros(SFA))(0));
    CUTE_UNROLL
    for (int n = 0; n < size<1>(B_zipped); ++n) {
      auto [B, SFB] = unzip_tensor(B_zipped(_, n));
      Tensor sums = C(_, m, n);
      ::fastwan::emulated_mma(sums, rows, recast<uint32_t>(B),
                              recast<uint32_t>(filter_zeros(SFB))(0));
    }
  }
}

}  // namespace cute

namespace flash {

// In place of packed_float_to_e2m1, whose one use is for probabilities: none is negative.
CUTLASS_DEVICE void emulated_float_to_e2m1(float f0, float f1, float f2, float f3, float f4,
                                           float f5, float f6, float f7, uint32_t& out) {
  out = ::fastwan::to_e2m1x8_unsigned({f0, f1, f2, f3, f4, f5, f6, f7});
}

}  // namespace flash

#define packed_float_to_e2m1 emulated_float_to_e2m1

namespace cutlass::arch {

// The loading warps keep 40 registers, not the published 24: on Hopper they would spill. 128 threads
// of 40 and 256 of 232 are the 384 of 168 that the kernel starts with.
template <uint32_t kRegisters>
CUTLASS_DEVICE void emulated_reg_dealloc() {
  static_assert(kRegisters <= 40);
  warpgroup_reg_dealloc<40>();
}

}  // namespace cutlass::arch

#define warpgroup_reg_dealloc emulated_reg_dealloc
