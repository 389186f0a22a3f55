#!/usr/bin/env bash
# Table 4: VisionDrop, one thing changed at a time, the mean of tokens the same.
# Writes outputs/tables/table4_ablation/table4_ablation.{md,tex,csv,png}; stopped, the same command goes on.
#   bash scripts/tables/table4_ablation.sh [--quick] [--limit 300] [--benchmarks a,b] [--methods a,b] [--tokens 64,32]
# Settings, as flags or as variables (docs/tables.md): MODEL, DATA (a folder with a folder for each
# benchmark), BENCHMARKS, METHODS, TOKENS, LIMIT, OUT, RESULTS, NPROC, SEEDS, BATCH, DTYPE
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/table.sh" table4_ablation "$@"
