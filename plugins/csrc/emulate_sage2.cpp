// SageAttention2++ on the host: the device code of its prologue and kernel, for tests.
//
// FASTWAN_SAGE2_WIDE chooses what the kernel is for: 1 as on compute capability 9.0, else e4m3.
#define FASTWAN_HOST_EMULATION
#ifndef FASTWAN_SAGE2_WIDE
#define FASTWAN_SAGE2_WIDE 0
#endif
#include "sage2_attention.cuh"
#include "sage2_quantise.cuh"

namespace {

using namespace fastwan::sage2;

template <typename Arguments, void (*kBody)(Arguments)>
void run(void const* argument) {
  kBody(*static_cast<Arguments const*>(argument));
}

void attention_body(void const* argument) {
  alignas(128) static uint8_t memory[shared_bytes(kWide)];
  attention_block(*static_cast<AttentionArguments const*>(argument), memory);
}

void run_blocks(void (*body)(void const*), void const* arguments, int64_t blocks) {
  for (blockIdx.x = 0; blockIdx.x < static_cast<unsigned>(blocks); ++blockIdx.x) {
    fastwan::emulation::run_block(body, arguments);
  }
}

template <bool kRowScaled>
void run_prologue(PrologueArguments const& p) {
  run_blocks(run<PrologueArguments const, statistics_kernel<kRowScaled>>, &p, statistics_blocks(p));
  run_blocks(run<PrologueArguments const, reduce_kernel>, &p, reduce_blocks(p));
  run_blocks(p.per_thread ? run<PrologueArguments const, quantise_kernel<true, kRowScaled>>
                          : run<PrologueArguments const, quantise_kernel<false, kRowScaled>>,
             &p, quantise_blocks(p));
}

}  // namespace

extern "C" void fastwan_emulate_sage2_layout(fastwan_sage2_desc const* desc,
                                             fastwan_sage2_layout* layout) {
  *layout = make_layout(*desc);
}

extern "C" void fastwan_emulate_sage2_prologue(fastwan_sage2_desc const* desc,
                                               void const* const* inputs, void* const* outputs,
                                               void* workspace) {
  fastwan_sage2_layout const layout = make_layout(*desc);
  PrologueArguments const p =
      prologue_arguments(*desc, layout, bind(*desc, layout, inputs, outputs, workspace), kWide);
  (row_scaled(*desc) ? run_prologue<true> : run_prologue<false>)(p);
}

extern "C" void fastwan_emulate_sage2_attention(fastwan_sage2_desc const* desc,
                                                void* const* outputs, void* workspace) {
  fastwan_sage2_layout const layout = make_layout(*desc);
  AttentionArguments const p =
      attention_arguments(*desc, layout, bind(*desc, layout, nullptr, outputs, workspace));
  run_blocks(attention_body, &p, attention_blocks(*desc, p));
}
