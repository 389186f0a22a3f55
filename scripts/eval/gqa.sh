#!/usr/bin/env bash
# Answers and scores GQA, and prints one table. Without settings: the bundled model and data.
#   MODEL=liuhaotian/llava-v1.5-7b DATA=/data/gqa TOKENS=192,128,64 bash scripts/eval/gqa.sh
# Settings (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, ...): scripts/benchmark.sh lists them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../benchmark.sh" gqa "$@"
