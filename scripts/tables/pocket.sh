#!/usr/bin/env bash
# The bundled model's table: question types x budgets, with the controls beside VisionDrop.
# Writes docs/results/pocket_textvqa.{md,csv,json}; stopped, the same command goes on.
#   bash scripts/tables/pocket.sh [--limit 600] [--tokens 64,32] [--dtype bfloat16] [--nproc 2]
#   MODEL, NPROC, DTYPE, ...: as in scripts/eval/textvqa.sh
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
# On a CPU, memory that goes back to the system between layers costs half the time (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
exec .venv/bin/python -m llava.eval.pocket_table "$@"
