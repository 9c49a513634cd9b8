#!/usr/bin/env bash
# make bench: installs what is missing, builds for measuring, measures everything side by side, and
# writes bench/results/DATE.json, bench/results/latest.json and bench/REPORT.md.
#
#   QUICK=1        three rounds and short measurements: four minutes
#   BENCH_WORK=DIR the folder for terminals, facts and logs; kept and used again
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

# Only what is measured or takes part in it: the whole workspace takes several times as long.
BINS=(sekisho-gateway sekisho-ra sekisho-signer sekisho-hub sekisho sekisho-office sekisho-bench)

build() {
    local bins=() bin
    for bin in "${BINS[@]}"; do
        bins+=(--bin "$bin")
    done
    cargo build --release --locked "${bins[@]}"
}

measure() {
    local args=(suite --out bench/results --page bench/REPORT.md)
    [ -n "${BENCH_WORK:-}" ] && args+=(--work "$BENCH_WORK")
    case "${QUICK:-0}" in
        0 | '') ;;
        *) args+=(--quick) ;;
    esac
    "$(target_dir)/release/sekisho-bench" "${args[@]}"
}

stage 'packages' ./scripts/install.sh
stage 'packages for measuring' ./scripts/install-bench.sh
stage 'build (release)' build
stage 'measuring' measure
summary
