// The glue on the host: its device code under host_emulation.h.
#define FASTWAN_HOST_EMULATION
#include "glue_arguments.h"

namespace {

template <typename Arguments, void (*kKernel)(Arguments)>
void run(void const* argument) {
  kKernel(*static_cast<Arguments const*>(argument));
}

template <typename Arguments>
void run_blocks(void (*body)(void const*), Arguments const& arguments, int64_t blocks) {
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    fastwan::emulation::run_block(body, &arguments);
  }
}

using Body = void (*)(void const*);

template <fastwan::NormKind kKind>
Body norm_body(fastwan::NormArguments const& p) {
  using namespace fastwan;
  return p.parts == kUsualParts
             ? run<NormArguments const, residual_norm_kernel<kUsualParts, kKind>>
             : run<NormArguments const, residual_norm_kernel<kMaxParts, kKind>>;
}

Body norm_body(fastwan_glue_kind kind, fastwan::NormArguments const& p) {
  using fastwan::NormKind;
  if (kind == FASTWAN_GLUE_NORM_QUANTIZE) return norm_body<NormKind::kNormQuantize>(p);
  if (kind == FASTWAN_GLUE_RESIDUAL_NORM) return norm_body<NormKind::kResidualNorm>(p);
  return norm_body<NormKind::kResidualNormQuantize>(p);
}

}  // namespace

extern "C" void fastwan_emulate_glue(fastwan_glue_desc const* desc, void const* const* inputs,
                                     void* const* outputs) {
  using namespace fastwan;
  if (has_layer_norm(*desc)) {
    NormArguments const p = norm_arguments(*desc, inputs, outputs);
    return run_blocks(norm_body(static_cast<fastwan_glue_kind>(desc->kind), p), p, norm_blocks(p));
  }
  if (desc->kind == FASTWAN_GLUE_CROSS_ATTENTION) {
    CrossArguments const p = cross_arguments(*desc, inputs, outputs);
    return run_blocks(run<CrossArguments const, cross_attention_kernel>, p, cross_blocks(p));
  }
  // As on a GPU with one multiprocessor, so that threads own more groups than one.
  QuantizeArguments const p = quantize_arguments(*desc, inputs, outputs, 1);
  auto* const body = desc->kind == FASTWAN_GLUE_GELU_QUANTIZE
                         ? run<QuantizeArguments const, quantize_kernel<true>>
                         : run<QuantizeArguments const, quantize_kernel<false>>;
  run_blocks(body, p, quantize_blocks(p));
}

extern "C" void fastwan_emulate_gelu(float const* values, float* results, int64_t count) {
  for (int64_t i = 0; i < count; ++i) results[i] = fastwan::gelu_tanh(values[i]);
}

// Magnitudes that `gelu_pair` gives of bf16 numbers, two at a time.
extern "C" void fastwan_emulate_gelu_pairs(uint32_t const* values, uint32_t* results,
                                           int64_t pairs) {
  uint32_t table[fastwan::kGeluEntries];
  for (int i = 0; i < fastwan::kGeluEntries; ++i) table[i] = fastwan::gelu_entry(i);
  for (int64_t i = 0; i < pairs; ++i) results[i] = fastwan::gelu_pair(table, values[i]);
}

// Four codes in 16 bits of each two pairs of bf16 numbers, under one scale whose reciprocal is
// `ulps` units in the last place off.
extern "C" void fastwan_emulate_codes(uint32_t const* values, uint16_t* results, int64_t fours,
                                      uint32_t scale, int ulps) {
  float const twice = 2.0f / fastwan::from_e4m3(scale);
  uint32_t const inverse =
      fastwan::split_in_two(__uint_as_float(__float_as_uint(twice) + static_cast<uint32_t>(ulps)));
  for (int64_t i = 0; i < fours; ++i) {
    results[i] = static_cast<uint16_t>(fastwan::four_codes(
        fastwan::four_values(values[2 * i], values[2 * i + 1]), inverse));
  }
}
