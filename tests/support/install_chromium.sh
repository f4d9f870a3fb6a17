#!/usr/bin/env bash
# Installs Debian's Chromium for tests/support/chromium.py; does nothing where one is installed. Where it cannot, it
# prints one sentence and exits with 1: the tests of pages then skip.
set -euo pipefail

command -v chromium >/dev/null || command -v google-chrome >/dev/null || {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "No Chromium for the tests: installing it needs root and apt-get." >&2
        exit 1
    fi
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends chromium; } >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        echo "No Chromium for the tests: apt-get failed." >&2
        exit 1
    }
}
