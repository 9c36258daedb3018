#!/usr/bin/env bash
# Set up once, then run the main job; arguments go to python -m raysae.sweep.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
"$here/setup.sh"
cd "$here/.."
exec .venv/bin/python -m raysae.sweep "$@"
