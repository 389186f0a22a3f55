#!/usr/bin/env bash
# Figure 1: attention from image to image beside attention from text to image, over three pictures.
# Writes outputs/figures/figure1.{png,pdf,csv,json}.
#   bash scripts/figures/figure1.sh [--layers 1,7,14] [--heads 0,1] [--picture NAME.jpg] [--corrected]
# Settings, as flags or as variables: MODEL, DATA, LIMIT (questions to choose from), OUT, BATCH, DTYPE
set -euo pipefail
export DTYPE=${DTYPE:-bfloat16}
exec bash "$(dirname "${BASH_SOURCE[0]}")/figure.sh" analysis.attention_maps --stem figure1 "$@"
