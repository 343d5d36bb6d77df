// Evaluates on the host the layouts that the attention kernel's own headers give its operands.
// Prints `scales <compared> <wrong>`, `logits <thread>: <tokens>` and `values <thread>: <tokens>`.
#include <cutlass/cutlass.h>

#include <cstdio>

#include "cute/tensor.hpp"
#include "kernel_traits.h"
#include "params.h"

using namespace cute;

using Traits = Flash_fwd_kernel_traits<128, 128, 128, 3, 1, false,
                                       cutlass::nv_float4_t<cutlass::float_e2m1_t>,
                                       cutlass::bfloat16_t>;

// The formulas of the operands that plugins/packing.py and the prologue write.
int scale_offset(int row, int group, int groups) {
  return (row / 64) * 64 * groups + (group / 4) * 256 + (row % 16) * 16 + ((row / 16) % 4) * 4 +
         group % 4;
}

int stored_token(int row) {
  int const within = row % 32;
  return row - within + (within / 8) * 2 + ((within % 8) / 2) * 8 + within % 2;
}

template <class Fragment, class Token>
void print_first_row(char const* name, int thread, Fragment const& fragment, Token token) {
  std::printf("%s %d:", name, thread);
  for (int i = 0; i < size(fragment); ++i) {
    if (get<0>(fragment(i)) == 0) std::printf(" %d", token(static_cast<int>(get<1>(fragment(i)))));
  }
  std::printf("\n");
}

int main() {
  int const padded = 256, heads = 3, batch = 2;
  auto const rows = Traits::BlkScaledConfig::tile_atom_to_shape_SFQKV(
      make_shape(padded, 128, heads, batch));
  auto const values = Traits::BlkScaledConfig::tile_atom_to_shape_SFVt(
      make_shape(128, padded, heads, batch));
  long compared = 0, wrong = 0;
  for (int head = 0; head < heads * batch; ++head) {
    for (int row = 0; row < padded; ++row) {
      for (int channel = 0; channel < 128; ++channel) {
        int const at = rows(make_coord(row, channel, head % heads, head / heads));
        wrong += at != head * padded * 8 + scale_offset(row, channel / 16, 8);
        int const groups = padded / 16;
        int const turned = values(make_coord(channel, row, head % heads, head / heads));
        wrong += turned != head * 128 * groups + scale_offset(channel, row / 16, groups);
        compared += 2;
      }
    }
  }
  std::printf("scales %ld %ld\n", compared, wrong);
  auto const tile = make_identity_tensor(Shape<_128, _128>{});
  Traits::TiledMmaQK logits;
  Traits::TiledMmaPV probabilities;
  for (int thread = 0; thread < 4; ++thread) {
    print_first_row("logits", thread, logits.get_thread_slice(thread).partition_C(tile),
                    stored_token);
    print_first_row("values", thread, probabilities.get_thread_slice(thread).partition_A(tile),
                    [](int token) { return token; });
  }
  std::printf("shared %zu\n", sizeof(Traits::SharedStorage));
  return 0;
}
