#!/usr/bin/env bash
# Answers and scores ScienceQA, and prints one table. Without settings: the bundled model and data.
#   MODEL=liuhaotian/llava-v1.5-7b DATA=/data/sqa TOKENS=192,128,64 bash scripts/eval/sqa.sh
# Settings (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, ...): scripts/benchmark.sh lists them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../benchmark.sh" sqa "$@"
