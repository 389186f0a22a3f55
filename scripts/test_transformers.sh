#!/usr/bin/env bash
# Runs the tests on another version of transformers: the oldest that we support, or the newest.
#   bash scripts/test_transformers.sh                      the oldest of pyproject.toml, models' tests
#   bash scripts/test_transformers.sh --version newest     the newest 5.x that pip finds
#   bash scripts/test_transformers.sh --version 5.20.0 tests/visiondrop -k golden    whatever pytest takes
#   WORKERS  test processes (default 1)
# The version goes into .venv-transformers-VERSION, a thin environment that takes everything else
# from .venv, so that all other packages are those of constraints.txt.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
stop() { printf '%s\n' "$*" >&2; exit 1; }

version=oldest
if [ "${1:-}" = --version ]; then
  version="${2:?--version needs a version, oldest or newest}"
  shift 2
fi
[ -x .venv/bin/python ] || bash scripts/setup.sh
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

case "$version" in
  oldest) version="$(sed -n 's/^ *"transformers>=\([0-9.]*\),.*/\1.0/p' pyproject.toml)" ;;
  newest)
    version="$(pip index versions transformers 2>/dev/null | tr ', ' '\n\n' | grep -m1 -E '^5\.[0-9]+\.[0-9]+$' || true)"
    [ -n "$version" ] || stop "pip finds no transformers 5.x; is there a network?"
    ;;
esac

venv=".venv-transformers-$version"
python="$PWD/$venv/bin/python"
installed() { "$python" -c 'from importlib.metadata import version; print(version("transformers"))' 2>/dev/null; }
if [ "$(installed)" != "$version" ]; then
  printf '== %s\n' "$venv"
  rm -rf "$venv"
  .venv/bin/python -m venv --without-pip "$venv"
  site="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  base="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  printf 'import site; site.addsitedir(%s)\n' "'$base'" >"$site/base.pth"
  grep -vE '^(transformers|huggingface_hub|hf-xet|httpx)==' constraints.txt >"$venv/constraints.txt"
  # pip leaves alone what lies outside the environment; what fits there is taken from there.
  pip --python "$python" install --quiet --no-input --no-compile \
    --constraint "$venv/constraints.txt" "transformers==$version"
  [ "$(installed)" = "$version" ] || stop "transformers $version was not installed into $venv"
fi
"$python" -c 'import torch, transformers; print(f"transformers {transformers.__version__}, torch {torch.__version__}")'

[ $# -gt 0 ] || set -- tests/visiondrop tests/llava
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=offline
exec "$python" -m pytest -q -n "${WORKERS:-1}" "$@"
