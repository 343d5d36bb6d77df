#!/usr/bin/env bash
# Run the kernels under every tool of compute-sanitizer; fails on the first finding.
#
# Those that know a kernel by its name run over the GPU tests, initcheck over initcheck_kernels.py.
#
#   scripts/sanitize_kernels.sh [pytest arguments]
#
# Needs a CUDA GPU, compute-sanitizer and a built plugin library. The attention's tests skip where
# no library that is built serves the GPU. A `-k` of your own takes the place of the one below, and
# CHECKS="memcheck racecheck" runs these two tools alone.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=${COMPUTE_SANITIZER:-compute-sanitizer}
command -v "$tool" >/dev/null || {
  echo "compute-sanitizer not found: install the CUDA toolkit or set COMPUTE_SANITIZER" >&2
  exit 3
}
prologue='test_prologue_writes_the_bytes_of_the_reference and not 1560'
glue='test_a_kernel_writes_what_the_reference_does or test_small_and_large_values'
sage2='test_the_attention_equals_the_reference and not 1560 and not 4095'
attention='test_attention_equals_the_reference and not 1560 and not 4095'
divided='test_divided_keys_equal_the_reference and 1930-2048-1-1-15'
# Without the caching allocator every tensor is an allocation of its own, so that an access behind
# its end is seen. A pool would hide it.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
kernels=(prologue_kernel compute_attn_ws attention_parts merge_kernel quantize_kernel
  residual_norm_kernel attention_kernel statistics_kernel reduce_kernel quantise_kernel)
for check in ${CHECKS:-memcheck racecheck synccheck initcheck}; do
  echo "== $check"
  run=("$tool" --tool "$check" --error-exitcode 1 --target-processes all)
  if [[ $check == initcheck ]]; then
    # It has to see every write, so that it takes the time of every kernel that runs: torch's
    # references of the tests are too many. What a TMA stores it does not see, so that a copy of the
    # attention's output would look like one of memory that nobody has written.
    "${run[@]}" --check-api-memory-access no --show-backtrace no "${PYTHON:-python3}" scripts/initcheck_kernels.py
    continue
  fi
  "${run[@]}" "${kernels[@]/#/--kernel-name=kns=}" \
    "${PYTHON:-python3}" -m pytest tests/plugins/test_gpu_kernels.py \
    tests/plugins/test_gpu_glue.py tests/plugins/test_gpu_sage2.py -m gpu -q -x \
    -k "($prologue) or ($attention) or ($divided) or ($glue) or ($sage2)" "$@"
done
