#!/usr/bin/env bash
# Answers and scores TextVQA, and prints one table. Without settings: the bundled model and data.
#   bash scripts/eval/textvqa.sh
#   MODEL=liuhaotian/llava-v1.5-7b DATA=/data/textvqa TOKENS=192,128,64 bash scripts/eval/textvqa.sh
# Settings, as variables or as flags (--model-path, --data, --methods, ...; --help lists them all):
#   MODEL   checkpoint: folder or hub id          (checkpoints/pocket-llava)
#   DATA    folder of the benchmark's files       (playground/data/eval/textvqa)
#   METHODS comma list, or all                    (full,visiondrop,random,uniform)
#   TOKENS  visual tokens, mean over layers       (64)
#   LIMIT   first N questions, or all             (all; the bundled data: 480)
#   OUT     where results go                      (outputs)
#   NPROC   processes                             (one a GPU)
#   SEEDS, BATCH, DTYPE, CONV_MODE, ATTN, DEVICE
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
# On a CPU, memory that goes back to the system between layers costs half the time (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
exec .venv/bin/python -m llava.eval.run_benchmark textvqa "$@"
