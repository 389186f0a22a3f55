#!/usr/bin/env bash
# Makes the committed sample sets again, byte for byte with the same Pillow and matplotlib fonts.
# SETS="pope gqa" makes only these; OUT=folder writes below another folder; CHECK=1 compares with the
# checksums and writes nothing. Flags after the name go to python -m playground.generate.
# ANYRES=1 makes the sets of any-resolution pictures, below playground/data/eval_anyres.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if [ -n "${ANYRES:-}" ]; then
  set -- --anyres "$@"
  OUT=${OUT:-playground/data/eval_anyres}
  SETS=${SETS:-textvqa vqav2 gqa pope}
fi
OUT=${OUT:-playground/data/eval}
SETS=${SETS:-textvqa vqav2 vizwiz gqa pope mme mmbench mmbench_cn sqa seed mmvet tgif msvd msrvtt}
for name in $SETS; do
  if [ -n "${CHECK:-}" ]; then
    "$PYTHON" -m playground.generate "$name" --out "$OUT/$name" --check
  else
    echo "making $OUT/$name"
    "$PYTHON" -m playground.generate "$name" --out "$OUT/$name" "$@"
  fi
done
