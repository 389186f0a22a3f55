#!/usr/bin/env bash
# Figure 5: what VisionDrop keeps, merges and drops at the encoder and before decoder layers, over
# the picture, with each contextual token joined to the patches it absorbed.
# Writes outputs/figures/figure5.{png,pdf,csv,json} and figure5_counts.csv (patches by fate).
#   bash scripts/figures/figure5.sh [--pictures 3] [--picture NAME,NAME:2] [--methods a,b] [--tokens 64]
# Your own picture: --images photo.jpg --question "What is this?" --model-path liuhaotian/llava-v1.5-7b
# Settings, as flags or as variables: MODEL, DATA, METHODS, TOKENS, OUT, DTYPE
set -euo pipefail
export DTYPE=${DTYPE:-bfloat16} # about four times as fast as float32 on a CPU
exec bash "$(dirname "${BASH_SOURCE[0]}")/figure.sh" analysis.retained_tokens --stages --name figure5 "$@"
