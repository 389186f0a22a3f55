#!/usr/bin/env bash
# Makes .venv with this repository's packages and everything they use, in exact versions.
# Safe to run at any time: it does nothing when .venv is whole, and mends it when it is not.
#   PYTHON       the Python (3.11 or later) to make .venv with; found by itself otherwise
#   TORCH_INDEX  a package index to take torch from, such as https://download.pytorch.org/whl/cu126
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$ROOT/.venv"
CPU_INDEX="https://download.pytorch.org/whl/cpu"

say() { printf '[set-up] %s\n' "$*"; }
stop() { printf '[set-up] %s\n' "$*" >&2; exit 1; }

# The first Python that is new enough and can make virtual environments.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
      >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

has_nvidia_gpu() { nvidia-smi -L >/dev/null 2>&1; }

# Which index to take torch from; empty: the one that pip is set up for.
torch_index() {
  if [ -n "${TORCH_INDEX:-}" ]; then
    printf '%s\n' "$TORCH_INDEX"
  elif [ "$(uname -s)" = Linux ] && ! has_nvidia_gpu && reachable "$CPU_INDEX/torch/"; then
    printf '%s\n' "$CPU_INDEX"
  fi
}

reachable() {
  "$VENV/bin/python" - "$1" >/dev/null 2>&1 <<'PY'
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=4)
PY
}

# Can .venv be mended, or must it be made anew?
venv_works() {
  "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 &&
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1
}

# Runs a command into the log; shows that it lives; on failure shows the end of the log.
quietly() {
  local began=$SECONDS pid
  "$@" >>"$LOG" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.5
    if [ $((SECONDS - began)) -ge 15 ]; then
      began=$SECONDS
      say "  ... $SECONDS s: $(grep -aoE '^ *(Collecting|Downloading|Installing|Building|Processing)[^:(]{0,48}' "$LOG" | tail -n 1 || true)"
    fi
  done
  wait "$pid" && return 0
  tail -n 25 "$LOG" >&2
  return 1
}

# Bytecode is made at first import, of the modules that are used only.
pip_install() { quietly "$VENV/bin/python" -m pip install --no-input --no-compile --constraint "$ROOT/constraints.txt" "$@"; }

make_venv() {
  local python
  python="$(find_python)" || stop "No Python >= 3.11 with venv was found. Install one (Debian/Ubuntu: apt install python3.11-venv; conda: conda create -n py311 python=3.11), or name it: PYTHON=/path/to/python3.11 bash scripts/setup.sh"
  if [ -e "$VENV" ]; then
    [ -e "$VENV/pyvenv.cfg" ] || [ -z "$(ls -A "$VENV")" ] ||
      stop "$VENV is there but is not a virtual environment: move it away and run this again."
    say "the virtual environment does not work: making it anew"
    rm -rf "$VENV"
  fi
  say "virtual environment .venv with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
  "$python" -m venv "$VENV"
}

install_all() {
  local index broken
  index="$(torch_index)"
  if [ -n "$index" ]; then
    say "torch from $index"
    pip_install --no-deps --index-url "$index" --timeout 30 --retries 1 torch ||
      say "that did not work; going on with pip's own index"
  elif ! has_nvidia_gpu; then
    say "no GPU, and PyTorch's CPU wheels cannot be reached: torch from pip's own index"
  fi
  say "packages in the versions of constraints.txt (a minute or two)"
  (cd "$ROOT" && pip_install --editable '.[all]') ||
    stop "Installation failed (log: $LOG). Without a network, connect and run this again; what is there is kept."
  broken="$("$VENV/bin/python" "$ROOT/scripts/check_venv.py" broken)"
  if [ -n "$broken" ]; then
    say "mending $(printf '%s' "$broken" | tr '\n' ' ')"
    # shellcheck disable=SC2086  # one package a word
    pip_install --force-reinstall --no-deps $broken ||
      stop "Mending failed (log: $LOG). Remove .venv and run this again."
  fi
}

verify() {
  say "checking that it imports"
  quietly "$VENV/bin/python" -c 'import torch, transformers, PIL, numpy, sentencepiece, visiondrop, llava' ||
    stop "The packages are installed but do not import (above). Remove .venv and run this again."
  "$VENV/bin/python" "$ROOT/scripts/check_venv.py" stamp
  local reason
  reason="$("$VENV/bin/python" "$ROOT/scripts/check_venv.py" ready)" || stop "Not whole after all: $reason. Remove .venv and run this again."
}

# 0: whole. 1: set-up is needed. 3: another llava is in the way.
check() { "$VENV/bin/python" "$ROOT/scripts/check_venv.py" "$1"; }

main() {
  local reason status=0
  # DeepSpeed would compile its kernels at installation otherwise; it builds them at first use.
  export DS_BUILD_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1
  reason="$(check ready 2>&1)" || status=$?
  [ "$status" -eq 0 ] && return 0
  [ "$status" -eq 3 ] && stop "$reason"
  reason="${reason##*$'\n'}"
  if command -v flock >/dev/null 2>&1; then # two at once would spoil each other's work
    exec 9>"$VENV.lock"
    flock -n 9 || { say "waiting for another set-up"; flock 9; check ready >/dev/null 2>&1 && return 0; }
  fi
  if venv_works; then say "mending .venv: $reason"; else make_venv; fi
  LOG="$VENV/setup.log"
  : >"$LOG"
  check foreign || exit 1
  rm -f "$VENV/visiondrop-setup.json"
  install_all
  check foreign || exit 1
  verify
  say "ready in $SECONDS s"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then main "$@"; fi
