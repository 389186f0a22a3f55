#!/usr/bin/env bash
# Lint, format, types and tests; sets itself up first.
#   bash scripts/test.sh            the normal run
#   bash scripts/test.sh --all      every cell of the test matrices
#   bash scripts/test.sh tests/visiondrop -k golden    whatever else pytest takes
#   WORKERS  test processes (default 2)
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
bash scripts/setup.sh || exit 1
bin=.venv/bin

pytest_args=()
for arg in "$@"; do
  if [ "$arg" = --all ]; then pytest_args+=(--all-cells); else pytest_args+=("$arg"); fi
done

failed=()
step() {
  local name=$1
  shift
  printf '\n== %s\n' "$name"
  "$@" || failed+=("$name")
}

# One thread a process: the tests' tensors are small, and the processes share the cores.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=${WANDB_MODE:-offline}
# Memory that goes back to the system between layers costs half the time on a CPU (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
step "ruff check" $bin/ruff check .
step "ruff format" $bin/ruff format --check .
step "mypy" $bin/python -m mypy
step "pytest" $bin/python -m pytest -q -n "${WORKERS:-2}" --durations=10 ${pytest_args[@]+"${pytest_args[@]}"}
case "${pytest_args[*]-}" in
  "" | --all-cells)
    step "notebooks" $bin/python -m pytest -q --nbmake notebooks -n "${WORKERS:-2}"
    step "findings" $bin/python -m analysis.findings check
    ;;
esac

if [ ${#failed[@]} -gt 0 ]; then
  printf '\nFAILED: %s\n' "${failed[*]}"
  exit 1
fi
printf '\nAll passed in %s s.\n' "$SECONDS"
