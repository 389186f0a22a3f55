#!/usr/bin/env bash
# Answers and scores MMBench-CN, and prints one table. Without settings: the bundled model and data.
#   MODEL=liuhaotian/llava-v1.5-7b DATA=/data/mmbench_cn TOKENS=192,128,64 bash scripts/eval/mmbench_cn.sh
#   SPLIT=MMBench_TEST_CN_legacy makes the file that the server scores
# Settings (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, ...): scripts/benchmark.sh lists them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../benchmark.sh" mmbench_cn "$@"
