// The prologue on the host: the device code of prologue.cuh under host_emulation.h.
#define FASTWAN_HOST_EMULATION
#include "prologue.cuh"

namespace {

template <int kMaxHeads>
void run(void const* argument) {
  fastwan::prologue_kernel<kMaxHeads>(*static_cast<fastwan::PrologueArguments const*>(argument));
}

}  // namespace

extern "C" void fastwan_emulate_layout(fastwan_region_desc const* desc,
                                       fastwan_sage_layout* layout) {
  *layout = fastwan::make_layout(*desc);
}

extern "C" void fastwan_emulate_prologue(fastwan_region_desc const* desc,
                                         void const* const* inputs, void* const* outputs,
                                         void* workspace) {
  fastwan_sage_layout const layout = fastwan::make_layout(*desc);
  fastwan::PrologueArguments const arguments = fastwan::prologue_arguments(
      *desc, layout, fastwan::bind(layout, inputs, outputs, workspace));
  auto* body = desc->num_heads <= 12 ? run<12> : run<FASTWAN_MAX_HEADS>;
  unsigned const blocks = static_cast<unsigned>(fastwan::prologue_blocks(arguments));
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    fastwan::emulation::run_block(body, &arguments);
  }
}

extern "C" void fastwan_emulate_e2m1(float const* values, uint8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) codes[i] = fastwan::to_e2m1(values[i]);
}

extern "C" void fastwan_emulate_e4m3(float const* values, uint8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) codes[i] = fastwan::to_e4m3(values[i]);
}
