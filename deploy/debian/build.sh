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
if "$program" man >"$made/man/syncmux.1" 2>/dev/null; then
    commands=$("$program" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\)  .*/\1/p')
    for command in $commands; do
        [ "$command" = help ] || "$program" man "$command" >"$made/man/syncmux-$command.1"
    done
    for shell in bash zsh fish; do
        "$program" completions "$shell" >"$made/$shell"
    done
else
    # INTERIM, to be removed once `syncmux man` and `syncmux completions` are merged.
    { printf '.TH SYNCMUX 1\n.SH NAME\nsyncmux\n.SH HELP\n.nf\n' && "$program" --help; } \
        >"$made/man/syncmux.1"
    echo "complete -W 'run check' syncmux" >"$made/bash"
    printf '#compdef syncmux\n_arguments "1:command:(run check)"\n' >"$made/zsh"
    echo "complete -c syncmux -a 'run check'" >"$made/fish"
fi

# --fast: the better compression takes long and saves little.
cargo deb -q --no-build --fast --profile "$profile" ${output:+--output "$output"}
