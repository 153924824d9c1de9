#!/bin/sh
# The benchmark: stock clients (alone, and sharded by hand), syncmux strict and fan-out, at several
# round-trip times, side by side in one run.
#
#   tests/bench/run.sh [--rtt 0,20,100] [--users 200] [--lanes 4,8,16] [--shards 4,8,16]
#                      [--repeats 3] [--csv FILE] [--quick] [--expect-fan-out X] [--expect-strict X]
set -eu
cd "$(dirname "$0")/../.."
. tests/install.sh
cargo build --release --bin syncmux --example bench
exec "${CARGO_TARGET_DIR:-target}/release/examples/bench" matrix "$@"
