#!/usr/bin/env bash
# Run the tests in the project's environment; arguments go to pytest, e.g. scripts/test.sh -m slow.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

fastwan_environment
cd "$root"
exec "$bin/python" -m pytest "$@"
