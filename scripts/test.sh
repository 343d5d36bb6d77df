#!/usr/bin/env bash
# Run the tests in the project's environment; arguments go to pytest, e.g. scripts/test.sh -m slow.
#
# A process a core shares the tests, four at most: each loads torch. Tests that are picked by a mark
# run one after the other: the slow ones fill the memory, and there is one GPU.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

fastwan_environment
cd "$root"
parallel=(-n auto --maxprocesses 4 --dist worksteal)
case " $* " in
    *" -m"* | *no:xdist*) parallel=() ;;
esac
exec "$bin/python" -m pytest ${parallel[@]+"${parallel[@]}"} "$@"
