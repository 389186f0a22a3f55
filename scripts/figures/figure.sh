#!/usr/bin/env bash
# Sets up, then draws one figure: scripts/figures/figure*.sh call this with a module and its flags.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
# On a CPU, memory that goes back to the system between layers costs half the time (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
# Small matrices of NumPy are up to ten times as fast on one thread as on several that wait.
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
export TOKENIZERS_PARALLELISM=false OUT=${OUT:-outputs/figures}
exec .venv/bin/python -m "$@"
