#!/usr/bin/env bash
# Answers and scores VizWiz, and prints one table. Without settings: the bundled model and data.
#   MODEL=liuhaotian/llava-v1.5-7b DATA=/data/vizwiz TOKENS=192,128,64 bash scripts/eval/vizwiz.sh
# SPLIT=test answers it, and writes upload.json for the server beside the answers.
# Settings (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, ...): scripts/benchmark.sh lists them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../benchmark.sh" vizwiz "$@"
