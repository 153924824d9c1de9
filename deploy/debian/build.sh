#!/bin/sh
# Builds the Debian package and says where it is:
#   deploy/debian/build.sh [--profile dev] [--no-build] [--output FOLDER]
# Needs cargo-deb: cargo install cargo-deb.
set -eu
cd "$(dirname "$0")/../.."

profile=release
build=yes
output=
while [ "$#" -gt 0 ]; do
    case $1 in
        --profile) profile=$2; shift ;;
        --no-build) build= ;;
        --output) output=$2; shift ;;
        *) sed -n '2,4s/^# *//p' "$0" >&2; exit 64 ;;
    esac
    shift
done
folder=$profile
[ "$profile" != dev ] || folder=debug
program=${CARGO_TARGET_DIR:-target}/$folder/syncmux
[ -z "$build" ] || cargo build -q --locked --bin syncmux --profile "$profile"

# The program writes its own man pages and completions; the metadata in Cargo.toml takes them from
# here.
made=target/deb
rm -rf "$made"
mkdir -p "$made/man"
"$program" man >"$made/man/syncmux.1"
commands=$("$program" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\)  .*/\1/p')
for command in $commands; do
    [ "$command" = help ] || "$program" man "$command" >"$made/man/syncmux-$command.1"
done
for shell in bash zsh fish; do
    "$program" completions "$shell" >"$made/$shell"
done

# --fast: the better compression takes long and saves little.
cargo deb -q --no-build --fast --profile "$profile" ${output:+--output "$output"}
