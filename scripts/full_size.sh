#!/usr/bin/env bash
# The real size, nightly: a synthetic 1.3 B checkpoint to engines, held to the project's limits.
#
# FASTWAN_OUT           folder for what it makes (65 GB with the text encoder); by default out/full
# FASTWAN_TEXT_ENCODER  1: with the 5.7 B text encoder (needs 80 GB of disk)
# FASTWAN_VENV, FASTWAN_PYTHON: see environment.sh
#
# Prints, for each build and for `verify`, seconds, CPU-seconds and peak memory by the operating
# system's account. Memory, sizes and coverage fail the script; times depend on the machine and are
# only printed.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

fastwan_environment
out=${FASTWAN_OUT:-$root/out/full}
mkdir -p "$out"
export FASTWAN_CACHE_DIR=$out/cache

text=(--no-text-encoder)
[[ ${FASTWAN_TEXT_ENCODER:-0} == 1 ]] && text=(--text-encoder)

# measure NAME LIMIT_GB COMMAND...: run a command, then hold its peak memory to a limit.
measure() {
    local name=$1 limit=$2
    shift 2
    "$bin/python" - "$name" "$limit" "$@" <<'PY'
import resource
import subprocess
import sys
import time

name, limit, *command = sys.argv[1:]
begin = time.monotonic()
code = subprocess.run(command).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
peak = used.ru_maxrss * 1024 / 1e9
print(
    f"{name}: {time.monotonic() - begin:.1f} s, {used.ru_utime + used.ru_stime:.1f} CPU-s, "
    f"peak {peak:.2f} GB of {limit} GB (measured)"
)
sys.exit(code or (1 if peak > float(limit) else 0))
PY
}

build() {
    local name=$1 limit=$2
    shift 2
    measure "$name" "$limit" "$bin/fastwan-export" build-engine --checkpoint "$out/checkpoint" \
        --target rtx5090 -o "$out/$name" "$@"
}

rm -rf "$out/cache" "$out/checkpoint"
measure make-checkpoint 0.6 "$bin/fastwan-export" make-checkpoint --size 1.3b "${text[@]}" \
    "$out/checkpoint"
build cut 1.6 --components dit --fusion none
build cut-again 1.6 --components dit --fusion none
build native 1.6 --components dit --attention native
build decoder 2 --components decoder
bundles=(cut native decoder)
if [[ ${text[0]} == --text-encoder ]]; then
    build text-encoder 12 --components text_encoder
    build text-encoder-nvfp4 12 --components text_encoder --text-encoder-recipe nvfp4
    bundles+=(text-encoder text-encoder-nvfp4)
    "$bin/python" "$root/scripts/text_encoder_error.py" "$out/checkpoint" | tail -n 1
fi
# Minutes: the 30 blocks on a CPU, at a small number of tokens.
measure verify 16 "$bin/fastwan-export" verify "$out/cut"
for name in "${bundles[@]}"; do
    "$bin/fastwan-export" inspect "$out/$name" --json >"$out/$name.json"
done

# A build with nothing changed gives the same bytes.
diff <(cd "$out/cut" && find . -type f ! -name manifest.json -exec sha256sum {} + | sort) \
    <(cd "$out/cut-again" && find . -type f ! -name manifest.json -exec sha256sum {} + | sort)

"$bin/python" - "$out" <<'PY'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
failed = False


def check(name: str, value: float, limit: float) -> None:
    global failed
    verdict = "ok" if value <= limit else "ABOVE ITS LIMIT"
    failed |= value > limit
    print(f"{name}: {value:,.0f} of {limit:,.0f} {verdict}")


for name, block, limit in (("cut", "segment_01", 4460e6), ("native", "dit_01", 5850e6)):
    report = json.loads((out / f"{name}.json").read_text())
    dit = report["components"]["dit"]
    check(f"{name}: linears not in FP4", 300 - dit["quantised_linears"], 0)
    if name == "cut":
        check(f"{name}: bytes of the engines", dit["bytes"], 910e6)
    check(f"{name}: scratch", dit["scratch_bytes"], 1.4e9)
    check(f"{name}: memory-bound bytes of a block",
          report["engines"][block]["memory_bound_bytes"], limit)
decoder = json.loads((out / "decoder.json").read_text())["components"]["decoder"]
check("decoder: scratch", decoder["scratch_bytes"], 0.5e9)
sys.exit(failed)
PY
