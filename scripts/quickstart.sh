#!/usr/bin/env bash
# From nothing to RTX 5090 engines, a verified bundle and a short video; needs no GPU.
#
# FASTWAN_OUT     folder for what it makes; by default out in the project
# FASTWAN_SEED    seed of the synthetic checkpoint and of the video; by default 1024
# FASTWAN_VENV, FASTWAN_PYTHON: see environment.sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

fastwan_environment
out=${FASTWAN_OUT:-$root/out}
seed=${FASTWAN_SEED:-1024}
prompt="A red fox walks through fresh snow"
bundle=$out/rtx5090-tiny
video=$out/video.mp4
frames=$out/frames
mkdir -p "$out"

run() {
    local word
    printf '\n$ fastwan-export' >&2
    for word; do
        if [[ $word == *' '* ]]; then printf ' "%s"' "$word" >&2; else printf ' %s' "$word" >&2; fi
    done
    printf '\n' >&2
    "$bin/fastwan-export" "$@"
}

run make-checkpoint --size tiny --seed "$seed" "$out/checkpoint"
run build-engine --checkpoint "$out/checkpoint" --target rtx5090 --backend tensorrt-rtx \
    --attention sage3 -o "$bundle"
run inspect "$bundle"
run verify "$bundle"
run generate "$bundle" "$prompt" --device cpu --seed "$seed" -o "$video" --frames "$frames"

first=("$frames"/*.png)
for file in "$bundle/manifest.json" "$video" "${first[0]}"; do
    [[ -s $file ]] || { echo "quickstart made no $file" >&2; exit 1; }
done
cat <<END

bundle: $bundle
video:  $video
frame:  ${first[0]}
END
