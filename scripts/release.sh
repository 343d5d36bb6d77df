#!/usr/bin/env bash
# Build an sdist and a Linux wheel of the tracked files into dist/, or into the folder that is given:
# the same bytes each time. Prints their hashes.
#
# The wheel carries libfastwan_plugins.so, so that who installs it needs no CUDA compiler. Building
# it does: see `fastwan-export doctor`. Headers of TensorRT in TENSORRT_ROOT give the library its
# TensorRT plugin, which --backend tensorrt needs.
#
# FASTWAN_PLUGIN_LIBRARY  a library of these very sources that has been built already
# FASTWAN_VENV, FASTWAN_PYTHON: see environment.sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

out=$(realpath -m -- "${1:-$root/dist}")
fastwan_environment
cd "$root"
umask 022
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) || die "no commit: a release is dated by its last one"
git diff --quiet HEAD || echo "with changes that are not committed" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Run what follows in silence; what it said where it fails.
quietly() {
    "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; die "failed: $*"; }
}

# Have the build backend make an sdist or a wheel of a folder: quietly_build KIND FOLDER INTO.
build() {
    local backend="import sys; from setuptools import build_meta; build_meta.build_$1(sys.argv[1])"
    mkdir -p "$3"
    (cd "$2" && quietly "$bin/python" -c "$backend" "$3")
}

mkdir "$work/source"
git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$work/source"
build sdist "$work/source" "$work/raw"
sdist=$(basename "$work"/raw/*.tar.gz)
tar --extract --directory="$work" --file="$work/raw/$sdist"
folder=${sdist%.tar.gz}
mkdir "$work/dist"
tar --create --directory="$work" --sort=name --format=posix --mtime="@$SOURCE_DATE_EPOCH" \
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
    --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$folder" |
    gzip -9 --no-name >"$work/dist/$sdist"

# From the sdist, as pip would.
build wheel "$work/$folder" "$work/pure"
library=${FASTWAN_PLUGIN_LIBRARY:-$("$bin/fastwan-export" build-plugin)}
"$bin/python" - "$library" <<'PYTHON'
import sys
from pathlib import Path

from fastwan.plugins.library_file import built_from, check_elf, refuse_emulated, sources_digest

library = Path(sys.argv[1])
check_elf(library)
refuse_emulated(library)
if built_from(library) != sources_digest():
    sys.exit(f"{library} was built from other sources: build it again with build-plugin")
PYTHON
quietly "$bin/python" -m wheel unpack --dest "$work/tree" "$work"/pure/*.whl
tree=$(echo "$work"/tree/*)
install -m 644 "$library" "$tree/fastwan/plugins/libfastwan_plugins.so"
sed --in-place "$tree"/*.dist-info/WHEEL \
    --expression='s/^Root-Is-Purelib: .*/Root-Is-Purelib: false/' \
    --expression="s/^Tag: .*/Tag: py3-none-linux_$(uname -m)/"
quietly "$bin/python" -m wheel pack --dest-dir "$work/dist" "$tree"
# The oldest glibc that the library runs on gives the wheel its name.
quietly "$bin/python" -m auditwheel show "$work"/dist/*.whl
platform=$(grep --only-matching --max-count=1 'manylinux_[0-9]*_[0-9]*_[a-z0-9_]*' "$work/log") ||
    die "auditwheel finds no manylinux tag for a wheel with $library: $(<"$work/log")"
quietly "$bin/python" -m wheel tags --remove --platform-tag "$platform" "$work"/dist/*.whl

mkdir -p "$out"
mv "$work"/dist/* "$out"
cd "$out"
sha256sum "$sdist" "$folder"-*.whl
