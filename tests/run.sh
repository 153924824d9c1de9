#!/bin/sh
# Installs what is missing and runs every test. Arguments go to the test runner
# (tests/run.sh mail::messages::fan_out). Without Cyrus the tests fail; they are never skipped.
#
#   tests/run.sh --versions [MASTER-REPLICA ...] [-- ARGUMENTS]
#
# runs the end-to-end tests for each pair of Cyrus's versions (tests/versions.sh).
set -eu
cd "$(dirname "$0")/.."
. tests/install.sh
if [ "${1:-}" = --versions ]; then
    shift
    exec tests/versions.sh "$@"
fi
# Two minutes of downloads and unpacking, beside what else is installed and compiled.
tests/install_versions.sh &
versions=$!
. tests/install_deploy.sh
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --no-run
else
    cargo test --no-run
fi
wait "$versions"

# Cyrus calls fsync all the time; that is not what is tested. TMPDIR, where set, is respected.
if [ -z "${TMPDIR:-}" ] && [ "$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 4000000 ] 2>/dev/null; then
    TMPDIR=/dev/shm
    export TMPDIR
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
if cargo nextest --version >/dev/null 2>&1; then
    # A flag beside --no-fail-fast would hide what else fails.
    { cargo nextest run --no-fail-fast "$@" 2>&1 || echo failed >"$log.status"; } | tee "$log"
    if [ "$#" = 0 ]; then
        { cargo test --doc 2>&1 || echo failed >"$log.status"; } | tee -a "$log"
    fi
else
    { cargo test --no-fail-fast "$@" -- --test-threads="$(nproc)" 2>&1 ||
        echo failed >"$log.status"; } | tee "$log"
fi
if [ -e "$log.status" ]; then
    rm -f "$log.status"
    status=1
fi
echo "---"
grep -E '^ +Summary |^test result: ' "$log" || true
exit "$status"
