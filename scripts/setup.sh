#!/usr/bin/env bash
# Make .venv with raysae in it, unless it is there already: scripts/setup.sh [test|bench ...]
# Needs Python 3.11 or newer; PYTHON=/path/to/python names another than the first one found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=$(IFS=,; echo "$*")
stamp=".venv/.installed-${extras:-plain}-$(cksum < pyproject.toml | cut -d' ' -f1)"
[ -e "$stamp" ] && exit 0

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if new_enough "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "error: raysae needs Python 3.11 or newer; none found (PYTHON=/path/to/python names one)" >&2
    exit 2
fi
if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
    echo "error: $python cannot make a virtual environment; on Debian install python3-venv" >&2
    exit 2
fi
echo "Installing raysae into .venv (once; a few minutes) ..."
.venv/bin/python -m pip install -qq --disable-pip-version-check -e ".${extras:+[$extras]}"
# what a first run would else compile: Python's byte code, and the CPU kernels where there is a C++ compiler
.venv/bin/python -m compileall -q raysae || true
.venv/bin/python -c "from raysae.training.kernels import kernels; kernels()"
touch "$stamp"
