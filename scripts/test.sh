#!/usr/bin/env bash
# Set up once, then run every check and the tests; arguments go to pytest.
# Two workers: most tests wait for processes of Ray's to start.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
"$here/setup.sh" test
cd "$here/.."
export PATH="$PWD/.venv/bin:$PATH"
ruff check raysae tests scripts
ruff format --check raysae tests scripts
mypy
lint-imports --no-logo
exec python -m pytest -n 2 --no-loadscope-reorder "$@"
