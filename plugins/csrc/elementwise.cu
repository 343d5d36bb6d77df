// Checks and launches of the loop's small kernels.
#include "elementwise.cuh"

#include <cmath>

#include "status.h"

namespace fastwan {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;

unsigned blocks_for(int64_t elements) {
  int64_t const blocks = (elements + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

bool known(uint32_t dtype) { return dtype <= FASTWAN_FLOAT16; }

bool usable(void const* pointer, uint32_t dtype) {
  uintptr_t const size = dtype == FASTWAN_FLOAT32 ? 4 : 2;
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % size == 0;
}

fastwan_status validate(fastwan_combine_desc const* desc, void const* const* terms,
                        void* const* outputs) {
  if (desc == nullptr || desc->struct_bytes != sizeof(fastwan_combine_desc)) {
    return fail(FASTWAN_INVALID_ARGUMENT, "the combine description is of another interface");
  }
  if (desc->num_terms < 1 || desc->num_terms > FASTWAN_MAX_TERMS || desc->num_sums < 1 ||
      desc->num_sums > FASTWAN_MAX_SUMS || desc->elements < 1) {
    return fail(FASTWAN_INVALID_ARGUMENT, "%u terms, %u sums, %lld elements: out of range",
                desc->num_terms, desc->num_sums, static_cast<long long>(desc->elements));
  }
  for (uint32_t t = 0; t < desc->num_terms; ++t) {
    if (!known(desc->dtypes[t]) || terms == nullptr || !usable(terms[t], desc->dtypes[t])) {
      return fail(FASTWAN_INVALID_ARGUMENT, "term %u is null, misaligned or of no known dtype", t);
    }
  }
  for (uint32_t s = 0; s < desc->num_sums; ++s) {
    if (outputs == nullptr || !usable(outputs[s], FASTWAN_FLOAT32) || desc->counts[s] < 1 ||
        desc->counts[s] > FASTWAN_MAX_TERMS) {
      return fail(FASTWAN_INVALID_ARGUMENT, "sum %u has no output or no terms", s);
    }
    for (uint32_t k = 0; k < desc->counts[s]; ++k) {
      if (desc->indices[s][k] >= desc->num_terms || !std::isfinite(desc->weights[s][k])) {
        return fail(FASTWAN_INVALID_ARGUMENT, "sum %u reads term %u with weight %g", s,
                    desc->indices[s][k], desc->weights[s][k]);
      }
    }
  }
  return FASTWAN_OK;
}

}  // namespace
}  // namespace fastwan

int fastwan_combine_enqueue(fastwan_combine_desc const* desc, void const* const* terms,
                            void* const* outputs, void* stream) {
  using namespace fastwan;
  fastwan_status const status = validate(desc, terms, outputs);
  if (status != FASTWAN_OK) return status;
  CombineArguments arguments{};
  arguments.desc = *desc;
  for (uint32_t t = 0; t < desc->num_terms; ++t) arguments.terms[t] = terms[t];
  for (uint32_t s = 0; s < desc->num_sums; ++s) {
    arguments.outputs[s] = static_cast<float*>(outputs[s]);
  }
  auto* const queue = static_cast<cudaStream_t>(stream);
  combine_kernel<<<blocks_for(desc->elements), kThreads, 0, queue>>>(arguments);
  return check(cudaGetLastError(), "combine launch");
}

int fastwan_cast_enqueue(fastwan_cast_desc const* desc, void const* source, void* target,
                         void* stream) {
  using namespace fastwan;
  if (desc == nullptr || desc->struct_bytes != sizeof(fastwan_cast_desc)) {
    return fail(FASTWAN_INVALID_ARGUMENT, "the cast description is of another interface");
  }
  if (desc->rows < 1 || desc->columns < 1 || desc->pitch < desc->columns) {
    return fail(FASTWAN_INVALID_ARGUMENT, "%lld rows of %lld at a pitch of %lld: out of range",
                static_cast<long long>(desc->rows), static_cast<long long>(desc->columns),
                static_cast<long long>(desc->pitch));
  }
  if (!known(desc->source_dtype) || !known(desc->target_dtype) ||
      !usable(source, desc->source_dtype) || !usable(target, desc->target_dtype)) {
    return fail(FASTWAN_INVALID_ARGUMENT,
                "source or target is null, misaligned or of no known dtype");
  }
  auto* const queue = static_cast<cudaStream_t>(stream);
  unsigned const blocks = blocks_for(desc->rows * desc->columns);
  cast_kernel<<<blocks, kThreads, 0, queue>>>(*desc, source, target);
  return check(cudaGetLastError(), "cast launch");
}
