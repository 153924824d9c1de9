#!/bin/sh
# Shows what syncmux is for: a real Cyrus master, a real replica with TLS, a link with a round-trip
# time between them. New mail for every user is replicated by the stock client alone, then through
# syncmux, strict and fan-out; a table of seconds and a comparison of both ends come last.
#
#   deploy/demo.sh [--users N] [--rtt MILLISECONDS] [--lanes N]
#
# Run it as root on Debian 12 (or another release with these packages) with Rust installed. What is
# missing is installed; nothing is left running, and nothing but packages and target/ is left behind.
set -eu
cd "$(dirname "$0")/.."
. tests/install.sh
echo "Building ..."
cargo build --release --bin syncmux --example bench
exec "${CARGO_TARGET_DIR:-target}/release/examples/bench" demo "$@"
