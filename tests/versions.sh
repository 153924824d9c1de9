#!/bin/sh
# The end-to-end tests for pairs of Cyrus's versions, and a table of what came out. Called by tests/run.sh.
#
#   tests/run.sh --versions [MASTER-REPLICA ...] [-- ARGUMENTS OF cargo nextest run]
#
# Without pairs all nine. `known` are failures that known_differences.toml names: the same as stock to stock. What is said in full is kept in target/versions/MASTER-REPLICA.log.
set -eu
cd "$(dirname "$0")/.."
pairs=
while [ "$#" != 0 ] && [ "$1" != -- ]; do
    pairs="$pairs $1"
    shift
done
[ "$#" = 0 ] || shift
[ -n "$pairs" ] || pairs="3.6-3.6 3.2-3.2 3.2-3.6 3.2-3.10 3.6-3.2 3.6-3.10 3.10-3.2 3.10-3.6 3.10-3.10"

. tests/install.sh
install_packages python3
# The one that this machine has itself is not made.
case "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" in
bullseye) tests/install_versions.sh bookworm trixie ;;
trixie) tests/install_versions.sh bullseye bookworm ;;
*) tests/install_versions.sh ;;
esac
if [ -z "${TMPDIR:-}" ] && [ "$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 4000000 ] 2>/dev/null; then
    TMPDIR=/dev/shm
    export TMPDIR
fi

logs=${CARGO_TARGET_DIR:-target}/versions
mkdir -p "$logs"
cargo nextest run --no-run --test e2e
table=$(mktemp)
line=$(mktemp)
trap 'rm -f "$table" "$line"' EXIT
status=0
for pair in $pairs; do
    log=$logs/$pair.log
    echo "Master $(echo "$pair" | sed 's/-/, replica /') ..."
    SYNCMUX_MASTER=${pair%-*} SYNCMUX_REPLICA=${pair#*-} \
        cargo nextest run --test e2e --no-fail-fast --color never "$@" >"$log" 2>&1 </dev/null || true
    # Which of these are known differences: versions.py.
    if python3 tests/versions.py "$pair" "$log" >"$line"; then :; else status=1; fi
    cat "$line"
    cat "$line" >>"$table"
done
echo "---"
echo "$(git describe --always --dirty 2>/dev/null || echo 'unknown commit'), $(date -u +%Y-%m-%d)"
printf '%-10s %7s %7s %7s  %s\n' pair passed known failed 'names of failed'
cat "$table"
exit "$status"
