#!/usr/bin/env bash
# make test: every check and every test, cheap ones first. Ends with `N passed, N failed`.
#
# One profile (dev) and one selection of packages (the whole workspace) throughout: cargo then
# compiles each dependency once for all builds and tests, and once more, without code generation,
# for clippy. Only the last stage builds apart: what it counts must be release code.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

LOG=$(mktemp)

# run_tests ARGS...: cargo test over the workspace, its output kept for the count.
run_tests() {
    cargo test --quiet --workspace --locked --no-fail-fast "$@" 2>&1 | tee -a "$LOG"
}

# The integration tests of every crate but the end-to-end package, as cargo's `--test` arguments.
integration_tests() {
    cargo metadata --no-deps --format-version 1 --locked |
        grep -o '"kind":\["test"\],"crate_types":\["bin"\],"name":"[^"]*"' |
        sed 's/.*"name":"\(.*\)"/\1/' | sort -u | grep -v -x -e e2e -e tidy |
        sed 's/^/--test\n/'
}

count() {
    grep -E '^test result:' "$LOG" | grep -Eo "[0-9]+ $1" | awk '{ sum += $1 } END { print sum + 0 }'
}

# Also after a failure: the stages that were done, and the count of tests.
close() {
    summary
    printf '\n%d passed, %d failed\n' "$(count passed || true)" "$(count failed || true)"
    rm -f "$LOG"
}
trap close EXIT

# What a whole run leaves in target/ and in temporary folders, with room to spare.
NEEDED_GB=6
free_gb=$(df --output=avail --block-size=1G . | tail -n 1 | tr -d ' ')
if [ "$free_gb" -lt "$NEEDED_GB" ]; then
    echo "warning: ${free_gb} GB free on this disk; a whole run needs about ${NEEDED_GB} GB" >&2
fi

stage 'packages' ./scripts/install.sh
stage 'packages for measuring' ./scripts/install-bench.sh
mapfile -t INTEGRATION < <(integration_tests)
if [ "${#INTEGRATION[@]}" -eq 0 ]; then
    echo 'error: cargo metadata names no integration test: has its format changed?' >&2
    exit 1
fi
stage 'formatting' cargo fmt --all --check
stage 'clippy' cargo clippy --workspace --all-targets --locked -- -D warnings
stage 'build' cargo build --workspace --all-targets --locked
stage 'tidy' run_tests --test tidy
stage 'unit and integration tests' run_tests --lib --bins "${INTEGRATION[@]}"
stage 'examples in the documentation' run_tests --doc
stage 'end-to-end tests' run_tests --test e2e
stage 'instruction counts' ./scripts/bench-gate.sh
