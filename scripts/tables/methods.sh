#!/usr/bin/env bash
# All methods on TextVQA at 192, 128, 64 and 32 tokens: table, CSV and plot, with paired intervals.
# Writes docs/results/methods_textvqa.{md,csv,png}; stopped, the same command goes on.
#   bash scripts/tables/methods.sh [--limit 480] [--tokens 64,32] [--methods all] [--nproc 2]
#   MODEL, NPROC, DTYPE, ...: as in scripts/eval/textvqa.sh
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
# On a CPU, memory that goes back to the system between layers costs half the time (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
exec .venv/bin/python -m llava.eval.methods_table "$@"
