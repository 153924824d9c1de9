# What CI runs, by name. `just --list` shows them.

# Form and lints
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings

# Every test, or those whose name contains the words given
test *words:
    tests/run.sh {{words}}

# The core by simulation; SYNCMUX_SEEDS=N for more seeds, SYNCMUX_SEED=K for one
sim:
    cargo test --test simulation -- --nocapture

# A real master, a real replica, a link: stock alone and through syncmux
demo *options:
    deploy/demo.sh {{options}}

# Seconds and ratios beside the stock client
bench *options:
    tests/bench/run.sh {{options}}

# Licences, duplicates and sources of the dependencies (needs cargo-deny)
deny:
    cargo deny check

# All that CI does
ci:
    .ci/run
