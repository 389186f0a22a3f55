#!/usr/bin/env bash
# Sets up, then makes one table: scripts/tables/table*.sh call this with its name.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
# On a CPU, memory that goes back to the system between layers costs half the time (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
export TQDM_DISABLE=${TQDM_DISABLE:-1} # one bar for the whole table
exec .venv/bin/python -m llava.eval.tables "$@"
