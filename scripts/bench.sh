#!/usr/bin/env bash
# make bench: builds the load generator and the gateway for measuring, and says how to use them.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

stage 'packages' ./scripts/install.sh
stage 'build (release)' cargo build --release --workspace --bins --locked
"$(target_dir)/release/sekisho-bench" --help
