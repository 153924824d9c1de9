#!/bin/sh
# The benchmark: stock clients (alone, and sharded by hand), syncmux strict and fan-out, side by side in
# one run. README.md beside this says what is measured.
#
#   tests/bench/run.sh [--quick] [--load append,flags,copy,copy-all] [--rtt 0,5,20,50,100] [--users N]
#                      [--lanes 1,2,4,8,16] [--shards 4,8,16] [--repeats 3] [--only TEXT] [--csv FILE]
#                      [--charts FOLDER] [--client 3.2|3.6|3.10] [--expect-fan-out X] [--expect-strict X]
#   tests/bench/run.sh lag [--rtt 20] [--rates 5,40] [--seconds 30] [--users 200] [--lanes 8]
#   tests/bench/run.sh beside [--rtt 20] [--megabytes 500] [--users 200] [--lanes 8]
#   tests/bench/run.sh rightnow [--rtt 20,100] [--clients 8] [--appends 40] [--silence 20]
#   tests/bench/run.sh terminate [--megabytes 2000] [--repeats 3]
#   tests/bench/run.sh cost [literals | small USERS ROUNDS]
set -eu
cd "$(dirname "$0")/../.."
examples="${CARGO_TARGET_DIR:-target}/release/examples"
case "${1:-}" in
cost)
    cargo build --release --example cost
    shift
    exec "$examples/cost" "$@"
    ;;
lag | beside | rightnow) ;;
terminate)
    command -v stunnel4 >/dev/null || {
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y stunnel4
    } >/dev/null
    ;;
*) set -- matrix "$@" ;;
esac
. tests/install.sh
# Another Cyrus as master and client: its Debian must be there.
case " $* " in
*" --client 3.2 "* | *" --client=3.2 "*) tests/install_versions.sh bullseye ;;
*" --client 3.10 "* | *" --client=3.10 "*) tests/install_versions.sh trixie ;;
esac
cargo build --release --bin syncmux --example bench
exec "$examples/bench" "$@"
