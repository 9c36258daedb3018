#!/usr/bin/env bash
# Make .peers, the libraries that tests/peers compares raysae with, unless it is there: scripts/peers.sh
# An environment of their own, as what they require would bind raysae's. PYTHON=... as in setup.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=".peers/.installed-$(cksum < scripts/peers.sh | cut -d' ' -f1)"
[ -e "$stamp" ] && exit 0

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=""
for candidate in ${PYTHON:-.venv/bin/python python3 python3.13 python3.12 python3.11 python}; do
    if new_enough "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "error: the peers need Python 3.11 or newer; none found (PYTHON=/path/to/python names one)" >&2
    exit 2
fi
rm -rf .peers  # half made, or by another version of this script
if ! "$python" -m venv .peers; then
    echo "error: $python cannot make a virtual environment; on Debian install python3-venv" >&2
    exit 2
fi
echo "Installing SAELens, sparsify and dictionary_learning into .peers (once; a few minutes) ..."
pip=(.peers/bin/python -m pip install -qq --disable-pip-version-check)
"${pip[@]}" "torch>=2.10,<2.14" sae-lens eai-sparsify triton
"${pip[@]}" --no-deps dictionary-learning  # of the rest that it requires nothing runs in the tests
touch "$stamp"
