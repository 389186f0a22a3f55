#!/usr/bin/env bash
# Where kept tokens lie: recall of regions that a question needs but does not name, and coverage of the picture,
# by method and budget. Writes outputs/figures/spatial.{png,pdf} and the numbers, spatial_recall and spatial_coverage.{csv,json}.
#   bash scripts/figures/spatial.sh [--limit 84] [--tokens 64,32] [--methods visiondrop,random]
#   bash scripts/figures/spatial.sh --images FOLDER      # coverage alone, of any pictures
# Settings, as flags or as variables: MODEL, DATA (with one --benchmark), LIMIT (questions of each benchmark),
# OUT, BATCH, DTYPE
set -euo pipefail
export DTYPE=${DTYPE:-bfloat16} OUT=${OUT:-outputs/figures}
exec bash "$(dirname "${BASH_SOURCE[0]}")/figure.sh" analysis.spatial_misalignment "$@"
