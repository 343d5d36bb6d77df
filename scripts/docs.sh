#!/usr/bin/env bash
# Build docs/ as a site in build/site; a warning is an error. Arguments go to mkdocs, e.g.
# scripts/docs.sh --site-dir FOLDER.
#
# FASTWAN_VENV, FASTWAN_PYTHON: see environment.sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

fastwan_environment
cd "$root"
# The theme's notice of a later MkDocs is no warning of these pages.
NO_MKDOCS_2_WARNING=1 exec "$bin/python" -m mkdocs build --strict --quiet \
    --config-file docs/site/mkdocs.yml "$@"
