#!/usr/bin/env bash
# Answers and scores TGIF-QA (exact match, no GPT), and prints one table. Without settings: the bundled
# video model and data.
#   MODEL=LanguageBind/Video-LLaVA-7B-hf DATA=/data/tgif TOKENS=194,136 CONV_MODE=llava_v1 bash scripts/eval/tgif.sh
# Settings (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, ...): scripts/benchmark.sh lists them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../benchmark.sh" tgif "$@"
