#!/usr/bin/env bash
# Sets up, then draws one figure: scripts/figures/figure*.sh call this with a module and its flags.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
# On a CPU, memory that goes back to the system between layers costs half the time (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
export TOKENIZERS_PARALLELISM=false OUT=${OUT:-outputs/figures}
exec .venv/bin/python -m "$@"
