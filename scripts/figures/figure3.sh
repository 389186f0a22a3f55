#!/usr/bin/env bash
# Figure 3: where scores keep tokens, attention by position, and what of it goes with the place
# alone: pictures upside down, plain grey, or with their tokens in random orders. A second plot has
# the rows of the picture that methods keep.
# Writes outputs/figures/figure3.{png,pdf,csv,json} and figure3_methods.{png,pdf}.
#   bash scripts/figures/figure3.sh [--limit 288] [--tokens 64] [--layers 1,4,8,12,15] [--map-layer 8]
# Of --limit questions, the first about each picture is asked (288 questions: 48 pictures).
# Settings, as flags or as variables: MODEL, DATA, LIMIT, OUT, BATCH, DTYPE
set -euo pipefail
export DTYPE=${DTYPE:-bfloat16}
exec bash "$(dirname "${BASH_SOURCE[0]}")/figure.sh" analysis.positional_bias --name figure3 "$@"
