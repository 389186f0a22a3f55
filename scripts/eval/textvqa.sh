#!/usr/bin/env bash
# Answers and scores TextVQA, and prints one table. Without settings: the bundled model and data.
#   bash scripts/eval/textvqa.sh
#   MODEL=liuhaotian/llava-v1.5-7b DATA=/data/textvqa TOKENS=192,128,64 bash scripts/eval/textvqa.sh
# Settings (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, ...): scripts/benchmark.sh lists them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../benchmark.sh" textvqa "$@"
