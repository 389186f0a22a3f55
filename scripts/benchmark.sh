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
#   NNODES  nodes with a shared OUT, with NODE_RANK, MASTER_ADDR, MASTER_PORT   (1; docs/scaling.md)
#   SEEDS, BATCH, DTYPE, CONV_MODE, ATTN, DEVICE
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
# On a CPU, memory that goes back to the system between layers costs half the time (glibc only).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
if [ "${NNODES:-1}" -gt 1 ]; then
  exec .venv/bin/torchrun --nnodes "$NNODES" --node_rank "${NODE_RANK:?is the number of this node}" \
    --master_addr "${MASTER_ADDR:?is the address of node 0}" --master_port "${MASTER_PORT:-29500}" \
    --nproc_per_node "${NPROC:-auto}" -m llava.eval.run_benchmark "$@"
fi
exec .venv/bin/python -m llava.eval.run_benchmark "$@"
