#!/usr/bin/env bash
# make down: stops what `make up` started. The data folder stays.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/stages.sh
source scripts/stages.sh
DATA=${1:-data}

if [ ! -d "$DATA" ]; then
    echo "nothing to stop: there is no data folder $DATA"
    exit 0
fi
sekisho=$(target_dir)/debug/sekisho
if [ ! -x "$sekisho" ]; then
    echo "error: $sekisho is not built; run: make up" >&2
    exit 1
fi
exec "$sekisho" down --data "$DATA"
