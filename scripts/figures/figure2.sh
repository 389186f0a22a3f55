#!/usr/bin/env bash
# Figure 2: PyramidDrop's schedule, only the score swapped, on four benchmarks.
# Writes outputs/figures/figure2.{png,pdf,csv,json,md}; stopped, the same command goes on.
#   bash scripts/figures/figure2.sh                                    a first look, in minutes on two cores
#   LIMIT=300 BATCH=24 bash scripts/figures/figure2.sh                 as in docs/results/figure2_scoring.md
# Settings, as flags or as variables: MODEL, DATA (a folder with a folder for each benchmark),
# BENCHMARKS, SCORES, TOKENS, LIMIT, SEEDS, NPROC, BATCH, DTYPE
set -euo pipefail
export LIMIT=${LIMIT:-24} BATCH=${BATCH:-12} DTYPE=${DTYPE:-bfloat16} OUT=${OUT:-outputs/figures}
export SCORES=${SCORES:-text,visual,visual_corrected,random,uniform,oracle}
exec bash "$(dirname "${BASH_SOURCE[0]}")/figure.sh" analysis.scoring_comparison \
  --out "outputs/analysis/scoring_comparison-$LIMIT" --results "$OUT" --stem figure2 "$@"
