#!/usr/bin/env bash
# Start Prometheus on loopback (port 9090) for the Ray of this machine: dashboards/prometheus.sh [OPTION ...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
dashboard=${RAY_DASHBOARD:-http://127.0.0.1:8265}
sed "s#HOME/#$HOME/#; s#http://127.0.0.1:8265#$dashboard#" "$here/prometheus.yml" > "$place/prometheus.yml"
if [ ! -f "$HOME/.ray/auth_token" ]; then # a Ray without tokens
    sed -i '/authorization:/,$d' "$place/prometheus.yml"
fi
prometheus --config.file="$place/prometheus.yml" --storage.tsdb.path="$place/data" \
    --web.listen-address="${PROMETHEUS_ADDRESS:-127.0.0.1:9090}" "$@"
