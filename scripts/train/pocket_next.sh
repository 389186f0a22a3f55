#!/usr/bin/env bash
# Trains the any-resolution pocket model on from the pocket model, or goes on with a run that was
# stopped: one command, resumable at any time, bounded by MINUTES for each call. Uses a GPU when
# there is one.
#   RUN=folder (runs/pocket-next)   MINUTES=60   SEED=0   OUT=checkpoints/pocket-llava-next
# Further flags go to `python -m llava.train.pocket_next`.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
RUN=${RUN:-runs/pocket-next}
MINUTES=${MINUTES:-60}
SEED=${SEED:-0}
OUT=${OUT:-checkpoints/pocket-llava-next}
# glibc gives large blocks back to the kernel at each free; on a CPU that costs half the speed.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
CORES=$(nproc)
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  HOW=(--loaders "$((CORES > 2 ? CORES - 2 : 1))")
else
  HOW=(--threads 1)
fi
echo "training in $RUN for at most $MINUTES minutes (seed $SEED, ${HOW[*]}), then writing $OUT"
"$PYTHON" -m llava.train.pocket_next --run "$RUN" --minutes "$MINUTES" --seed "$SEED" "${HOW[@]}" "$@"
"$PYTHON" -m llava.train.export_pocket --run "$RUN" --out "$OUT"
