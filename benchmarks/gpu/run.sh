#!/usr/bin/env bash
# Everything that needs a GPU, in under eight minutes from a clean checkout; stopped, it goes on.
#   bash benchmarks/gpu/run.sh               into docs/results/gpu_efficiency.json
#   PYTHON=python3 OUT=DIR COMMIT=HASH bash benchmarks/gpu/run.sh
# First the tests that need a device (kernels, CUDA graphs), then the cells of the aims, an
# evaluation on the bundled model, and, in the time that is left, the milliseconds of table 3 for a few methods (all of them: docs/efficiency.md).
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
python=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
out=${OUT:-docs/results}
seconds=${SECONDS_IN_ALL:-470}
left() { echo $((seconds - SECONDS > 5 ? seconds - SECONDS : 5)); }
mkdir -p "$out"
status=0
export PYTHONUNBUFFERED=1

if "$python" -c 'import pytest' 2>/dev/null; then
  timeout 150 "$python" -m pytest -q -p no:cacheprovider tests/visiondrop/test_kernels.py \
    tests/visiondrop/test_engine_cuda.py 2>&1 | tee "$out/gpu_tests.log" || status=1
fi
timeout "$(left)" "$python" -m benchmarks.gpu.efficiency --json "$out/gpu_efficiency.json" \
  --seconds "$(left)" ${COMMIT:+--commit "$COMMIT"} || status=1
if [ "$(left)" -gt 90 ]; then
  timeout "$(left)" "$python" -m benchmarks.evaluation_speed --device cuda --dtype bfloat16 \
    --repeats 1 --json "$out/gpu_evaluation_speed.json" || status=1
fi
for cell in llava-1.5-7b:64 llava-next-7b:320; do
  [ "$(left)" -gt 60 ] || break
  timeout "$(left)" "$python" -m visiondrop.profile --preset "${cell%%:*}" --tokens "${cell##*:}" \
    --method full,visiondrop,visionzip,fastv,random,uniform --device cuda --dtype bfloat16 \
    --engine graphs --new-tokens 1,16 --repeats 5 --warmup 1 --no-count \
    --json "$out/gpu_profile_${cell%%:*}.json" || status=1
done
"$python" -m benchmarks.gpu.aims --results "$out" || status=1
exit "$status"
