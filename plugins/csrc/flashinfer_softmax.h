// Softmax of FlashInfer's FP4 attention with the numerics that the model was trained with.
//
// Included by attention_flashinfer.cu before the kernel. Two things differ from the published one:
// the scale of 16 probabilities is their maximum / 6, in one level (there they are scaled by 448 * 6
// first), and the maxima of the first tile of keys can start at 0 (there always at minus infinity).
#pragma once

#define SoftmaxFused PublishedSoftmaxFused
#include <flashinfer/attention/sm120/nvfp4_attention_sm120/compute/consumer/softmax.cuh>
#undef SoftmaxFused

namespace nvfp4_attention {

template <int Rows>
struct SoftmaxFused : PublishedSoftmaxFused<Rows> {
  using Published = PublishedSoftmaxFused<Rows>;
  bool exact_max;

  template <bool FirstTile, bool InfCheck, typename TensorAcc, typename TensorMax>
  CUTLASS_DEVICE void prepare_online_softmax_n128(TensorAcc& acc, TensorMax& group_max,
                                                  float const scale_log2) {
    Published::template prepare_online_softmax_n128<FirstTile, InfCheck>(acc, group_max,
                                                                         scale_log2);
    if constexpr (FirstTile) {
      float const least = exact_max ? -INFINITY : 0.0f;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < size(group_max); ++i) group_max(i) = fmaxf(group_max(i), least);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < size(this->row_max); ++i) {
        this->row_max(i) = fmaxf(this->row_max(i), least);
      }
    }
  }

  // Half a tile of logits to probabilities in units of their group's scale, which replaces the
  // group's maximum.
  template <int Half, bool InfCheck, typename TensorAcc, typename TensorMax>
  CUTLASS_DEVICE void softmax_quantize_n64(TensorAcc& acc, TensorMax& group_max,
                                           float const scale_log2) {
    static_assert(!InfCheck && (Half == 0 || Half == 1));
    Tensor logits = make_tensor(acc.data(), convert_to_reduction_layout(acc.layout()));
    Tensor by_group = make_tensor(acc.data(), convert_to_conversion_layout(acc.layout()));
    auto groups =
        group_modes<1, 4>(group_modes<0, 2>(flatten(by_group(_, _, Int<Half>{}))));
    Tensor scales = group_max(_, make_coord(_, _, Int<Half>{}));
    CUTLASS_PRAGMA_UNROLL
    for (int row = 0; row < size<0>(logits); ++row) {
      float const max_scaled = this->row_max(row) * scale_log2;
      auto to_probabilities = [&](auto group) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < size<1, 0>(logits); ++i) {
          float const p = exp2f(logits(row, make_coord(i, group)) * scale_log2 - max_scaled);
          logits(row, make_coord(i, group)) = p;
          this->row_sum(row) += p;
        }
        group_max(row, group) = exp2f(group_max(row, group) * scale_log2 - max_scaled +
                                      Published::fp4_scale_log2);
      };
      to_probabilities(Int<2 * Half>{});
      to_probabilities(Int<2 * Half + 1>{});
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < size(scales); ++i) {
      float const inverse = Published::safe_inv_absmax(scales(i));
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < size<0>(groups); ++j) groups(j, i) *= inverse;
    }
  }
};

}  // namespace nvfp4_attention
