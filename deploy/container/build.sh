#!/bin/sh
# Puts what the image has beyond its base into a folder: deploy/container/build.sh FOLDER [PROGRAM]
# Without PROGRAM it is built first. The Containerfile runs this, and so do the tests.
set -eu
cd "$(dirname "$0")/../.."

root=${1:?where to?}
program=${2:-}
if [ -z "$program" ]; then
    cargo build --release --locked --bin syncmux
    program=${CARGO_TARGET_DIR:-target}/release/syncmux
fi

install -d -m 755 "$root/usr/bin" "$root/etc/syncmux" "$root/usr/share/doc/syncmux"
install -s -m 755 "$program" "$root/usr/bin/syncmux"
install -m 644 LICENSE CHANGELOG.md deploy/syncmux.toml "$root/usr/share/doc/syncmux/"
# For large messages (spill_directory); mount a disk there.
install -d -m 1777 "$root/var/tmp"
