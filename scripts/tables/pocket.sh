#!/usr/bin/env bash
# The bundled model's table: question types x budgets, with the controls beside VisionDrop.
# Writes docs/results/pocket_textvqa.{md,csv,json}; stopped, the same command goes on.
#   bash scripts/tables/pocket.sh [--limit 600] [--tokens 64,32] [--dtype bfloat16] [--nproc 2]
#   MODEL, NPROC, DTYPE, ...: as in scripts/eval/textvqa.sh
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
exec .venv/bin/python -m llava.eval.pocket_table "$@"
