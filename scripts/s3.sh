#!/usr/bin/env bash
# Make .venv-s3, an S3 server for scripts/s3_server.py, unless it is there: scripts/s3.sh
# An environment of its own, as moto is no dependency of raysae's. PYTHON=... as in setup.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=".venv-s3/.installed-$(cksum < scripts/s3.sh | cut -d' ' -f1)"
[ -e "$stamp" ] && exit 0

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=""
for candidate in ${PYTHON:-.venv/bin/python python3 python3.13 python3.12 python3.11 python}; do
    if new_enough "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "error: the S3 server needs Python 3.11 or newer; none found (PYTHON=/path/to/python names one)" >&2
    exit 2
fi
rm -rf .venv-s3  # half made, or by another version of this script
if ! "$python" -m venv .venv-s3; then
    echo "error: $python cannot make a virtual environment; on Debian install python3-venv" >&2
    exit 2
fi
echo "Installing moto's S3 server into .venv-s3 (once; half a minute) ..."
.venv-s3/bin/python -m pip install -qq --disable-pip-version-check "moto[server]>=5"
touch "$stamp"
