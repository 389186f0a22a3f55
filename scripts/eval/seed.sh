#!/usr/bin/env bash
# Answers and scores SEED-Bench's picture part, and prints one table. Without settings: the bundled model and data.
#   MODEL=liuhaotian/llava-v1.5-7b DATA=/data/seed TOKENS=192,128,64 bash scripts/eval/seed.sh
# Settings (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, ...): scripts/benchmark.sh lists them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../benchmark.sh" seed "$@"
