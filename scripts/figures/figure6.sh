#!/usr/bin/env bash
# Figure 6: what methods keep of one picture at each budget, after their last stage; and how far they
# keep the same patches, over LIMIT pictures, beside chance.
# Writes outputs/figures/figure6.{png,pdf,csv,json}, figure6_counts.csv (patches by fate),
# figure6_agreement.{png,pdf,csv,json} and figure6_agreement_regions.csv (of what is asked for, kept).
#   bash scripts/figures/figure6.sh [--picture NAME:2] [--methods a,b+field=value] [--tokens 192,64] [--limit 24]
# The agreement is at 64 tokens, or at the first of --tokens.
# Settings, as flags or as variables: MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, DTYPE
set -euo pipefail
export DTYPE=${DTYPE:-bfloat16} # about four times as fast as float32 on a CPU
exec bash "$(dirname "${BASH_SOURCE[0]}")/figure.sh" analysis.retained_tokens --grid --agreement --name figure6 "$@"
