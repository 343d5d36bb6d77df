# Sourced by the scripts beside it: `fastwan_environment` makes the virtual environment usable.
#
# FASTWAN_VENV    environment to use or create; by default .venv in the project
# FASTWAN_PYTHON  interpreter that creates it; by default the first of python3, python3.14, ...
#                 that is 3.11 or newer
# Sets root (the project), venv and bin (the environment and its programs).

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

die() {
    printf '%s\n' "$1" >&2
    exit 3
}

_find_python() {
    local candidate
    for candidate in ${FASTWAN_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer (${FASTWAN_PYTHON:-python3 on PATH}): install one, or name it in FASTWAN_PYTHON"
}

# What the installed environment is a function of; kept in full, so that no hash tool is needed.
_environment_key() {
    printf '%s\n' "$root"
    cat "$root/pyproject.toml" "$root/constraints.txt"
}

fastwan_environment() {
    venv=${FASTWAN_VENV:-$root/.venv}
    [[ $venv == /* ]] || venv=$PWD/$venv
    export FASTWAN_VENV=$venv # for a script that this one calls from another folder
    bin=$venv/bin
    local stamp=$venv/fastwan-installed python
    if [[ -x $bin/fastwan-export && -f $stamp && $(<"$stamp") == "$(_environment_key)" ]] &&
        "$bin/python" -c '' 2>/dev/null; then
        return
    fi
    if ! "$bin/python" -c '' 2>/dev/null; then
        python=$(_find_python) || exit 3
        echo "creating $venv with $("$python" --version)" >&2
        "$python" -m venv --clear "$venv" ||
            die "$python -m venv failed: install its venv package (python3-venv on Debian and Ubuntu)"
    fi
    rm -f "$stamp"
    echo "installing fastwan-export and its dependencies into $venv (minutes the first time)" >&2
    "$bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$root/constraints.txt" -e "$root[dev,docs]" ||
        die "pip could not install the dependencies: see its message above, then run this again"
    _environment_key >"$stamp"
}
