#!/usr/bin/env bash
# make bench-gate: instruction counts of the paths that matter, against bench/gate.json.
#
#   ACCEPT=1     record what is counted as the baseline of this kind of machine
#
# The build is the one that `make bench` measures: counts are of release code. Both name their programs
# and no package, so that both get the same features of each dependency, built once.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

stage 'packages' ./scripts/install.sh
stage 'build (release)' \
    cargo build --release --locked --bin sekisho-bench --bin sekisho-gateway
ARGUMENTS=()
if [ "${ACCEPT:-0}" = 1 ]; then
    ARGUMENTS+=(--accept)
fi
stage 'count' "$(target_dir)/release/sekisho-bench" gate "${ARGUMENTS[@]}"
