#!/usr/bin/env bash
# Sets up, then answers and scores one benchmark: scripts/eval/NAME.sh calls this with its name.
# Settings, as variables or as flags (--model-path, --data, --methods, ...; --help lists them all):
#   MODEL   checkpoint: folder or hub id          (checkpoints/pocket-llava)
#   DATA    folder of the benchmark's files       (the bundled ones)
#   SPLIT   of benchmarks with several            (the first that is there; VQAv2: val, test-dev)
#   METHODS comma list, or all                    (full,visiondrop,random,uniform)
#   TOKENS  visual tokens, mean over layers       (64)
#   LIMIT   first N questions, or all             (all; some of the bundled data)
#   OUT     where results go                      (outputs)
#   NPROC   processes                             (one a GPU)
#   SEEDS, BATCH, DTYPE, CONV_MODE, ATTN, DEVICE
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
# On a CPU, memory that goes back to the system between layers costs half the time (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
exec .venv/bin/python -m llava.eval.run_benchmark "$@"
