// The FP4 MMA of the published attention kernels on compute capability 9.0.
//
// Included when FASTWAN_EMULATED is 1, after a header that defines the kernels' MMA atom and
// `fastwan::kSumsApart`, and before any that multiplies.
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
#error "the emulated attention is for compute capability 9.0; leave FASTWAN_EMULATED out for others"
#endif

#include <cutlass/arch/reg_reconfig.h>

#include "emulated_mma.cuh"

namespace fastwan {

// A of one atom, given with its scales, to be multiplied by any number of B.
template <class Tensor>
CUTE_DEVICE HalfRows rows_of(Tensor const& zipped) {
  auto [values, scales] = cute::unzip_tensor(zipped);
  cute::Tensor codes = cute::recast<uint32_t>(values);
  // Q is the same for every tile of keys. Hidden from the compiler, which would keep what
  // follows from it in registers that it does not have.
  uint32_t own[4];
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i) {
    own[i] = codes(i);
    asm volatile("" : "+r"(own[i]));
  }
  return widen_rows([&](int i) { return own[i]; },
                    cute::recast<uint32_t>(cute::filter_zeros(scales))(0));
}

// sums += A B^T of one atom, B given with its scales.
template <class Sums, class Tensor>
CUTE_DEVICE void multiply(Sums& sums, HalfRows const& rows, Tensor const& zipped) {
  auto [values, scales] = cute::unzip_tensor(zipped);
  emulated_mma<kSumsApart>(sums, rows, cute::recast<uint32_t>(values),
               cute::recast<uint32_t>(cute::filter_zeros(scales))(0));
}

}  // namespace fastwan

namespace cute {

// The kernels' gemms of one atom, or of one slice of atoms along k, for the atom that they name:
// these overloads are more special than CuTe's own, which would call the atom's instruction.
template <class ThreadLayout, class Permutation, class TA, class ALayout, class TB, class BLayout,
          class TC, class CLayout>
CUTE_DEVICE void gemm(TiledMMA<MMA_Atom<SM120::BLOCKSCALED::SM120_16x32x64_TN_VS_NVFP4>,
                               ThreadLayout, Permutation> const&,
                      Tensor<TA, ALayout> const& A_zipped, Tensor<TB, BLayout> const& B_zipped,
                      Tensor<TC, CLayout>& C) {
  if constexpr (CLayout::rank == 1) {
    ::fastwan::multiply(C, ::fastwan::rows_of(A_zipped), B_zipped);
  } else {
    CUTE_UNROLL
    for (int m = 0; m < size<1>(A_zipped); ++m) {
      auto const rows = ::fastwan::rows_of(A_zipped(_, m));
      CUTE_UNROLL
      for (int n = 0; n < size<1>(B_zipped); ++n) {
        Tensor sums = C(_, m, n);
        ::fastwan::multiply(sums, rows, B_zipped(_, n));
      }
    }
  }
}

template <class ThreadLayout, class Permutation, class TA, class ALayout, class TB, class BLayout,
          class TC, class CLayout>
CUTE_DEVICE void gemm(TiledMMA<MMA_Atom<SM120::BLOCKSCALED::SM120_16x32x64_TN_VS_NVFP4>,
                               ThreadLayout, Permutation> const& mma,
                      Tensor<TA, ALayout> const& A_zipped, Tensor<TB, BLayout> const& B_zipped,
                      Tensor<TC, CLayout>&& C) {
  gemm(mma, A_zipped, B_zipped, C);
}

}  // namespace cute

namespace cutlass::arch {

// The loading warps keep 40 registers, not 24: on Hopper they would spill. 128 threads of 40 and
// 256 of 232 are the 384 of 168 that the kernels start with.
template <uint32_t kRegisters>
CUTLASS_DEVICE void emulated_reg_dealloc() {
  static_assert(kRegisters <= 40);
  warpgroup_reg_dealloc<40>();
}

}  // namespace cutlass::arch

#define warpgroup_reg_dealloc emulated_reg_dealloc
