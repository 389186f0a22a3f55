#!/usr/bin/env bash
# Makes the committed sample sets again, byte for byte with the same Pillow and matplotlib fonts.
# OUT=folder writes elsewhere; CHECK=1 compares with the checksums and writes nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${OUT:-playground/data/eval/textvqa}
if [ -n "${CHECK:-}" ]; then
  exec "$PYTHON" -m playground.generate --out "$OUT" --check
fi
echo "making $OUT: 2400 questions on 400 pictures"
"$PYTHON" -m playground.generate --out "$OUT" "$@"
