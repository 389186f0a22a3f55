#!/usr/bin/env bash
# Table 1: LLaVA-1.5, nine benchmarks at 192, 128, 64 and 32 tokens, every method.
# Writes outputs/tables/table1_llava15/table1_llava15.{md,tex,csv,png}; stopped, the same command goes on.
#   bash scripts/tables/table1_llava15.sh [--quick] [--limit 300] [--benchmarks a,b] [--methods a,b] [--tokens 64,32]
# Settings, as flags or as variables (docs/tables.md): MODEL, DATA (a folder with a folder for each
# benchmark), BENCHMARKS, METHODS, TOKENS, LIMIT, OUT, RESULTS, NPROC, SEEDS, BATCH, DTYPE
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/table.sh" table1_llava15 "$@"
