#!/usr/bin/env bash
# Table 3: FLOPs and KV cache of a prefill by formula, beside the paper's figures.
# Writes outputs/tables/table3_efficiency/table3_efficiency.{md,tex,csv}; stopped, the same command goes on.
#   bash scripts/tables/table3_efficiency.sh [--quick] [--limit 300] [--benchmarks a,b] [--methods a,b] [--tokens 64,32]
# Settings, as flags or as variables (docs/tables.md): MODEL, DATA (a folder with a folder for each
# benchmark), BENCHMARKS, METHODS, TOKENS, LIMIT, OUT, RESULTS, NPROC, SEEDS, BATCH, DTYPE
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/table.sh" table3_efficiency "$@"
