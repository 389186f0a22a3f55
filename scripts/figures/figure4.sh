#!/usr/bin/env bash
# Figure 4: two questions on one picture, and whether the text's query finds what it asks for, by layer.
# Writes outputs/figures/figure4.{png,pdf,csv,json}.
#   bash scripts/figures/figure4.sh [--picture NAME.jpg] [--shown-layers 2,6,10] [--tokens 64]
# Settings, as flags or as variables: MODEL, DATA, LIMIT (questions), OUT, BATCH, DTYPE
set -euo pipefail
export DTYPE=${DTYPE:-bfloat16}
exec bash "$(dirname "${BASH_SOURCE[0]}")/figure.sh" analysis.semantic_misalignment --stem figure4 "$@"
