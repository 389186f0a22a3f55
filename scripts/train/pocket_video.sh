#!/usr/bin/env bash
# Trains the pocket video model, beginning with the bundled image model, or goes on with a run that
# was stopped: one command, resumable at any time, bounded by MINUTES for each call. On a CPU.
#   RUN=folder (runs/pocket-video)   MINUTES=90   SEED=0   OUT=checkpoints/pocket-video-llava
# Further flags go to `python -m llava.train.pocket_video`.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
RUN=${RUN:-runs/pocket-video}
MINUTES=${MINUTES:-90}
SEED=${SEED:-0}
OUT=${OUT:-checkpoints/pocket-video-llava}
# glibc gives large blocks back to the kernel at each free; on a CPU that costs half the speed.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
echo "training in $RUN for at most $MINUTES minutes (seed $SEED), then writing $OUT"
exec "$PYTHON" -m llava.train.pocket_video --run "$RUN" --minutes "$MINUTES" --seed "$SEED" \
  --export "$OUT" "$@"
