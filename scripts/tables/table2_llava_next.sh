#!/usr/bin/env bash
# Table 2: LLaVA-NeXT at 640, 320 and 160 tokens; needs a checkpoint (MODEL).
# Writes outputs/tables/table2_llava_next/table2_llava_next.{md,tex,csv,png}; stopped, the same command goes on.
#   bash scripts/tables/table2_llava_next.sh [--quick] [--limit 300] [--benchmarks a,b] [--methods a,b] [--tokens 64,32]
# Settings, as flags or as variables (docs/tables.md): MODEL, DATA (a folder with a folder for each
# benchmark), BENCHMARKS, METHODS, TOKENS, LIMIT, OUT, RESULTS, NPROC, SEEDS, BATCH, DTYPE
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/table.sh" table2_llava_next "$@"
