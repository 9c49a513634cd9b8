#!/usr/bin/env bash
# make lint: every check that runs no program of ours.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

check_scripts() {
    if command -v shellcheck >/dev/null; then
        shellcheck --external-sources scripts/*.sh .ci/run
    else
        echo 'shellcheck is not installed: scripts are checked for syntax only'
        local script
        for script in scripts/*.sh .ci/run; do
            bash -n "$script"
        done
    fi
}

stage 'packages' ./scripts/install.sh
stage 'formatting' cargo fmt --all --check
stage 'scripts' check_scripts
stage 'clippy' cargo clippy --workspace --all-targets --locked -- -D warnings
stage 'tidy' cargo test --quiet --workspace --locked --test tidy
summary
