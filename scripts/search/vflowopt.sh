#!/usr/bin/env bash
# Searches VFlowOpt's hyper-parameters for a model, at one average after the other; by default for
# the bundled model, on questions that are generated for it (none of them is evaluated on).
#   bash scripts/search/vflowopt.sh                 # a few minutes a budget on one core
#   MODEL=liuhaotian/llava-v1.5-7b QUESTIONS=q.jsonl IMAGES=pictures TOKENS=64 bash scripts/search/vflowopt.sh
# Settings: MODEL, QUESTIONS, IMAGES, TOKENS (192,128,64,32), SAMPLES (30), TRIALS (40), and
# OUT (outputs/vflowopt), where TOKENS.json is written. Stopped, the same command goes on.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$ROOT/scripts/setup.sh"
cd "$ROOT"
export MODEL="${MODEL:-checkpoints/pocket-llava}"
OUT="${OUT:-outputs/vflowopt}"
if [ -z "${QUESTIONS:-}" ]; then
  made="$(mktemp -d)"
  trap 'rm -rf "$made"' EXIT
  .venv/bin/python -m playground.generate --out "$made" --questions 60 --seed 4242 >/dev/null
  QUESTIONS="$made/llava_textvqa_val_v051_ocr.jsonl"
fi
for tokens in $(tr ',' ' ' <<<"${TOKENS:-192,128,64,32}"); do
  .venv/bin/python -m llava.eval.vflowopt_search --questions "$QUESTIONS" \
    --image-folder "${IMAGES:-$(dirname "$QUESTIONS")/train_images}" --tokens "$tokens" \
    --samples "${SAMPLES:-30}" --trials "${TRIALS:-40}" --out "$OUT/$tokens.json" "$@"
done
