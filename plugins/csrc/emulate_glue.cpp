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

}  // namespace

extern "C" void fastwan_emulate_glue(fastwan_glue_desc const* desc, void const* const* inputs,
                                     void* const* outputs) {
  using namespace fastwan;
  if (has_layer_norm(*desc)) {
    NormArguments const p = norm_arguments(*desc, inputs, outputs);
    auto* const body = p.parts <= 12 ? run<NormArguments const, residual_norm_kernel<12>>
                                     : run<NormArguments const, residual_norm_kernel<kMaxParts>>;
    return run_blocks(body, p, norm_blocks(p));
  }
  if (desc->kind == FASTWAN_GLUE_CROSS_ATTENTION) {
    CrossArguments const p = cross_arguments(*desc, inputs, outputs);
    return run_blocks(run<CrossArguments const, cross_attention_kernel>, p, cross_blocks(p));
  }
  QuantizeArguments const p = quantize_arguments(*desc, inputs, outputs);
  auto* const body = desc->kind == FASTWAN_GLUE_GELU_QUANTIZE
                         ? run<QuantizeArguments const, quantize_kernel<true>>
                         : run<QuantizeArguments const, quantize_kernel<false>>;
  run_blocks(body, p, quantize_blocks(p));
}

extern "C" void fastwan_emulate_gelu(float const* values, float* results, int64_t count) {
  for (int64_t i = 0; i < count; ++i) results[i] = fastwan::gelu_tanh(values[i]);
}
