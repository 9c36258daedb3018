#!/usr/bin/env bash
# Install the programs that some tests drive, with apt-get and as root: scripts/programs.sh
# Chromium opens the pages, Prometheus asks the dashboard's queries. Without them those tests skip.
set -euo pipefail

missing=()
for program in chromium prometheus; do
    command -v "$program" > /dev/null || missing+=("$program")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
    echo "error: ${missing[*]} not found; only root can install them, and with apt-get" >&2
    exit 2
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --yes --no-install-recommends "${missing[@]}"
