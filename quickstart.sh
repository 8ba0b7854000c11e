#!/bin/sh
# From a fresh clone to a membrane mask, or to passed tests; installs into .venv on the first run.
#   sh quickstart.sh                   segment a small tomogram simulated on the spot
#   sh quickstart.sh TS_001.mrc ...    segment your own; options of `etsam segment` may follow
#   sh quickstart.sh --test            run the tests
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
venv=${ETSAM_VENV:-$here/.venv}
# where the environment has its programs: Python for Windows calls the folder Scripts
programs() {
    if [ -d "$venv/Scripts" ]; then echo "$venv/Scripts"; else echo "$venv/bin"; fi
}

if [ ! -x "$(programs)/python" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "quickstart: Python 3.11 or newer is needed; name one with PYTHON=python3.12" >&2
        exit 1
    }
    echo "quickstart: setting up $venv (a few minutes, once)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
fi
python=$(programs)/python
# install EXTRAS MODULE...: unless all modules can be imported already
install() {
    extras=$1
    shift
    for module; do
        "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)" ||
            { missing=yes && break; }
    done
    [ -n "${missing:-}" ] || return 0
    "$python" -m pip install --quiet --disable-pip-version-check 'torch==2.13.0'
    "$python" -m pip install --quiet --disable-pip-version-check -e "$here[$extras]"
}

if [ "${1:-}" = --test ]; then
    shift
    install fast,test etsam pytest hypothesis transformers
    cd "$here"
    exec "$python" -m pytest "$@"
fi
install fast etsam
[ $# -gt 0 ] || set -- --sample --overwrite
exec "$(programs)/etsam" segment --show "$@"
