# What CI runs, one recipe for each step (.ci/run).

# List the recipes
default:
    @just --list

# Format
fmt:
    cargo fmt

# Form and lints
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings

# Install what is missing and run every test, or those named
test *args:
    tests/run.sh {{args}}

# The simulation of the core with this many seeds
sim seeds="1000":
    SYNCMUX_SEEDS={{seeds}} cargo test --test simulation -- --nocapture

# Fuzz one target (commands, replies, session, names, synclog) for so many seconds
fuzz target seconds="600":
    cargo test --test fuzz_corpus -- --ignored write_seeds
    RUSTC_BOOTSTRAP=1 cargo fuzz run {{target}} --sanitizer none fuzz/corpus/{{target}} fuzz/seeds/{{target}} -- -max_total_time={{seconds}} -max_len=4096

# Generated hostile traffic, so many gigabytes, with the memory printed every second
hostile gigabytes="20":
    SYNCMUX_HOSTILE_GB={{gigabytes}} cargo test --release --test hostile_traffic -- --nocapture

# The demo: --users N --rtt MILLISECONDS --lanes N
demo *args:
    deploy/demo.sh {{args}}

# The benchmark: --quick for a short one
bench *args:
    tests/bench/run.sh {{args}}

# Licences, duplicates, sources (needs cargo-deny)
deny:
    cargo deny check bans licenses sources

# Everything that CI runs
ci:
    .ci/run
