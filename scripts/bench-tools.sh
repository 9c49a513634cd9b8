#!/usr/bin/env bash
# make bench-tools: the load generator beside h2load and ApacheBench, all against nginx alone; writes
# bench/results/tools.json and fails if they do not find the same within 10 %.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

stage 'packages' ./scripts/install.sh
stage 'packages for measuring' ./scripts/install-bench.sh nghttp2-client apache2-utils
stage 'build (release)' cargo build --release --locked --bin sekisho-bench
stage 'comparison' "$(target_dir)/release/sekisho-bench" tools
summary
