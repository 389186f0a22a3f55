#!/usr/bin/env bash
# Table 5: Video-LLaVA on TGIF-QA, MSVD-QA and MSRVTT-QA; without settings the bundled video model.
# Writes outputs/tables/table5_video/table5_video.{md,tex,csv,png}; stopped, the same command goes on.
#   bash scripts/tables/table5_video.sh [--quick] [--limit 300] [--benchmarks a,b] [--methods a,b] [--tokens 64,32]
# Settings, as flags or as variables (docs/tables.md): MODEL, DATA (a folder with a folder for each
# benchmark), BENCHMARKS, METHODS, TOKENS, LIMIT, OUT, RESULTS, NPROC, SEEDS, BATCH, DTYPE
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/table.sh" table5_video "$@"
