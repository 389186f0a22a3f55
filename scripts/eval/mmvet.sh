#!/usr/bin/env bash
# Answers MM-Vet and writes the files that its evaluator takes. Without settings: the bundled model
# and data. No score is made here: GPT-4 rates the answers, in MM-Vet's own notebook.
#   MODEL=liuhaotian/llava-v1.5-7b DATA=/data/mm-vet TOKENS=192,128,64 bash scripts/eval/mmvet.sh
# Settings (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, ...): scripts/benchmark.sh lists them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../benchmark.sh" mmvet "$@"
