#!/usr/bin/env bash
# Table 3: FLOPs and KV cache of a prefill by formula, beside the paper's figures; milliseconds from
# files of `python -m visiondrop.profile --json` (docs/efficiency.md), where some are given.
# Writes outputs/tables/table3_efficiency/table3_efficiency.{md,tex,csv}.
#   bash scripts/tables/table3_efficiency.sh [--methods a,b] [--tokens 64,32] [--measured a.json,b.json]
# Settings, as flags or as variables (docs/tables.md): METHODS, TOKENS, MEASURED, OUT, RESULTS
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/table.sh" table3_efficiency "$@"
