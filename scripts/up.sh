#!/usr/bin/env bash
# make up: installs what is missing, builds, and starts the box with demo data in $1.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/stages.sh
source scripts/stages.sh
DATA=${1:-data}

stage 'packages' ./scripts/install.sh
# The dev profile, as in the tests: it builds several times faster than release.
stage 'build' cargo build --workspace --bins --locked
stage 'start' "$(target_dir)/debug/sekisho" up --demo --detach --data "$DATA"

cat <<TEXT

Try also:
  $(target_dir)/debug/sekisho status --data $DATA
  $(target_dir)/debug/sekisho tour --data /tmp/sekisho-tour
  make down
TEXT
