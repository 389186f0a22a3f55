#!/usr/bin/env bash
# Everything that needs a GPU, in calls of under eight minutes; the same command goes on where the
# last one stopped.
#   bash benchmarks/gpu/run.sh               into docs/results/gpu_efficiency.json, logs in outputs/gpu
#   PYTHON=python3 OUT=DIR COMMIT=HASH bash benchmarks/gpu/run.sh        all into DIR
# First the tests that need a device (kernels, CUDA graphs), once for a commit; then the cells of the
# aims; an evaluation on the bundled model, for which time is set aside until it was made; then the
# milliseconds of table 3 for a few methods (all of them: docs/efficiency.md). What does not fit is
# left for the next call. torch, transformers, numpy and pillow are needed; without pytest there are
# no tests, without rich no evaluation.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
python=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
out=${OUT:-docs/results}
logs=${OUT:-outputs/gpu}
seconds=${SECONDS_IN_ALL:-470}
left() { echo $((seconds - SECONDS > 5 ? seconds - SECONDS : 5)); }
mkdir -p "$out" "$logs"
status=0
export PYTHONUNBUFFERED=1

commit=${COMMIT:-}
if [ -z "$commit" ] && commit=$(git rev-parse HEAD 2>/dev/null); then
  git diff --quiet HEAD -- '*.py' || commit=  # files differ: what passed before says nothing
fi
# done_at NAME: whether NAME was finished at this commit; mark NAME: it is.
done_at() { [ -n "$commit" ] && [ "$(cat "$logs/$1" 2>/dev/null)" = "$commit" ]; }
mark() { [ -z "$commit" ] || echo "$commit" > "$logs/$1"; }
# report STATUS WHAT: 124 is the end of the time, and what is done is kept.
report() {
  case $1 in
    0) ;;
    124) echo "$2: stopped as the time was over; left for the next call of the same command" ;;
    *) echo "$2: failed with status $1" && status=1 ;;
  esac
}

"$python" -c 'import sys, numpy, PIL, torch, transformers
sys.exit(None if torch.cuda.is_available() else "torch sees no CUDA device")' || exit 2
has() { "$python" -c "import $1" 2>/dev/null; }

if done_at gpu_tests.passed; then
  echo "tests: passed at this commit before"
elif has pytest; then
  # Without the project's options, which name plug-ins that may not be there.
  timeout 150 "$python" -m pytest -q -p no:cacheprovider -c /dev/null --rootdir=. \
    --import-mode=importlib tests/visiondrop/test_kernels.py tests/visiondrop/test_engine_cuda.py \
    tests/visiondrop/test_engine_cuda_decode.py > "$logs/gpu_tests.log" 2>&1
  code=$?
  tail -n 20 "$logs/gpu_tests.log"
  report $((code == 124 ? 1 : code)) tests  # they hang; they would not go on
  [ "$code" -ne 0 ] || mark gpu_tests.passed
else
  echo "tests: $python has no pytest; not run"
fi

evaluation=0
if done_at gpu_evaluation.done; then
  echo "evaluation: measured at this commit before"
elif has benchmarks.evaluation_speed; then
  evaluation=90
else
  echo "evaluation: not run, as 'import benchmarks.evaluation_speed' fails in $python"
fi
cells=$(($(left) > evaluation + 5 ? $(left) - evaluation : 5))
timeout "$cells" "$python" -m benchmarks.gpu.efficiency --json "$out/gpu_efficiency.json" \
  --seconds "$cells" ${commit:+--commit "$commit"}
report $? cells
if [ "$evaluation" -gt 0 ]; then
  timeout "$(left)" "$python" -m benchmarks.evaluation_speed --device cuda --dtype bfloat16 \
    --repeats 1 --json "$out/gpu_evaluation_speed.json"
  code=$?
  report "$code" evaluation
  [ "$code" -ne 0 ] || mark gpu_evaluation.done
fi
for cell in llava-1.5-7b:64 llava-next-7b:320; do
  if [ "$(left)" -le 60 ]; then
    echo "profile of ${cell%%:*}: left for the next call of the same command"
  else
    timeout "$(left)" "$python" -m visiondrop.profile --preset "${cell%%:*}" --tokens "${cell##*:}" \
      --method full,visiondrop,visionzip,fastv,random,uniform --device cuda --dtype bfloat16 \
      --engine graphs --new-tokens 1,16 --repeats 5 --warmup 1 --no-count \
      --json "$out/gpu_profile_${cell%%:*}.json"
    report $? "profile of ${cell%%:*}"
  fi
done
"$python" -m benchmarks.gpu.aims --results "$out" || status=1
exit "$status"
