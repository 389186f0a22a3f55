#!/usr/bin/env bash
# Figure 7: pictures of any resolution in their own coordinates: what methods keep of the crops
# (large) and of the thumbnail (small) at each budget; then, of the first method, stage by stage,
# with each contextual token joined to the patches it absorbed.
# Writes outputs/figures/figure7.{png,pdf,csv,json} and figure7_counts.csv (patches by fate), and
# figure7_stages likewise.
#   bash scripts/figures/figure7.sh [--pictures 2] [--picture NAME,NAME:2] [--methods a,b] [--tokens 640,320,160]
# Settings, as flags or as variables: MODEL, DATA, METHODS, TOKENS, OUT, DTYPE
set -euo pipefail
export DTYPE=${DTYPE:-bfloat16} # about four times as fast as float32 on a CPU
export MODEL=${MODEL:-checkpoints/pocket-llava-next} DATA=${DATA:-playground/data/eval_anyres/textvqa}
export METHODS=${METHODS:-visiondrop,visionzip,fastv,random}
here="$(dirname "${BASH_SOURCE[0]}")"
bash "$here/figure.sh" analysis.retained_tokens --grid --pictures 2 --name figure7 "$@"
METHODS=${METHODS%%,*} exec bash "$here/figure.sh" analysis.retained_tokens --stages --pictures 2 --name figure7_stages "$@"
