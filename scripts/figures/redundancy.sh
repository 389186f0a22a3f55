#!/usr/bin/env bash
# How much of the visual tokens' information is left in what is kept, layer by layer: where could one drop more?
# Writes outputs/figures/redundancy.{png,pdf} and the numbers, redundancy_rank and redundancy_sets.
#   bash scripts/figures/redundancy.sh [--limit 24] [--tokens 64] [--methods visiondrop,random] [--layers 0,8]
# Settings, as flags or as variables: MODEL, DATA, LIMIT (pictures), OUT, BATCH, DTYPE
set -euo pipefail
export DTYPE=${DTYPE:-bfloat16} OUT=${OUT:-outputs/figures}
exec bash "$(dirname "${BASH_SOURCE[0]}")/figure.sh" analysis.redundancy "$@"
