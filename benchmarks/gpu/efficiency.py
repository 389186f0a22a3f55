"""The efficiency figures of 7B models on one GPU, in under eight minutes; stopped, it goes on.

    python -m benchmarks.gpu.efficiency                            # all cells
    python -m benchmarks.gpu.efficiency --only first_token:llava-next-7b,kernel
    python -m benchmarks.gpu.efficiency --dry-run                  # tiny models, no GPU: a check
    python -m benchmarks.gpu.aims --results docs/results           # the table of aims

Weights are random: no time depends on them. Each cell is written when it is done, with the machine,
the versions and the commit it belongs to; cells of another commit, machine or version are never
mixed. After --seconds no further cell is begun; the same command goes on with what is left. A cell
that fails is written under "errors" and tried again by the next call, after those never tried.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig

from benchmarks.gpu.cells import Bench, free
from benchmarks.gpu.kernel import compare
from llava.eval.errors import EvalError, run_main
from llava.eval.files import write_atomically
from visiondrop.profiling.machine import check_room, machine, versions
from visiondrop.profiling.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "docs" / "results" / "gpu_efficiency.json"
BUDGETS = {"llava-next-7b": 320, "llava-1.5-7b": 64}
CELLS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "first_token": Bench.first_token,
    "prefill": Bench.prefill,
    "choosing": Bench.choosing,
    "memory": Bench.memory,
    "decode": Bench.decode,
    "compiled": Bench.compiled,
}
"""What is short and matters most stands first, what needs the most memory or a compiler last."""
ONE_MODEL = {"memory", "decode", "compiled"}
"""Cells of LLaVA-NeXT alone, which have the device to themselves."""
SHOWN = 500  # characters of an error's text


def names() -> list[str]:
    """All cells in the order in which they are measured."""
    return ["kernel"] + [
        f"{cell}:{preset}"
        for cell in CELLS
        for preset in BUDGETS
        if "next" in preset or cell not in ONE_MODEL
    ]


def tiny(anyres: bool) -> Any:
    """Shapes of the same kind that any machine runs in a second."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=24, patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=100, max_position_embeddings=1024,
    )  # fmt: skip
    more: dict[str, Any] = dict(vision_config=vision, text_config=text, image_token_index=99)
    if anyres:
        return LlavaNextConfig(**more, image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]])
    return LlavaConfig(**more)


def bench_of(preset: str, args: argparse.Namespace) -> Bench:
    """One of the two models, or its tiny stand-in."""
    if args.dry_run:
        anyres = PRESETS[preset].anyres
        return Bench(
            tiny(anyres), 40 if anyres else 12, "cpu", torch.float32, "replay", 1, 0, 3, smaller=8
        )
    config = PRESETS[preset].config()
    check_room(config, torch.bfloat16, torch.device("cuda"))
    return Bench(config, BUDGETS[preset])


def commit() -> str | None:
    """Of the checkout, "+" behind it where files differ; None without git."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.returncode:
            return None
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"]).returncode
    except OSError:
        return None
    return head.stdout.strip() + ("+" if changed else "")


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures belong to."""
    device = torch.device("cpu" if args.dry_run else "cuda")
    return {
        "machine": machine(device),
        "versions": versions(),
        "commit": args.commit or commit(),
        "settings": {"dry_run": args.dry_run, "dtype": "float32" if args.dry_run else "bfloat16",
                     "attention": "sdpa", "budgets": BUDGETS},
    }  # fmt: skip


def begin(path: Path, here: dict[str, Any]) -> dict[str, Any]:
    """What a file holds of the same machine, versions and commit, or an empty one.

    Raises `EvalError` where it holds others.
    """
    empty: dict[str, Any] = {"cells": {}, "seconds": {}, "errors": {}}
    if not path.exists():
        return {**here, **empty}
    there = json.loads(path.read_text(encoding="utf-8"))
    if differ := [name for name in here if there.get(name) != json.loads(json.dumps(here[name]))]:
        raise EvalError(
            f"--json {path}: the file holds cells of another {', '.join(differ)}; name another "
            "file, or remove it"
        )
    return {**empty, **there}


def cell_of(name: str, benches: dict[str, Bench], args: argparse.Namespace) -> dict[str, Any]:
    """Measure one cell; models that it makes stay in `benches`."""
    if name == "kernel":
        if args.dry_run:
            return compare("cpu", torch.float32, ((1, 2, 2, 30, 40, 16),), 1)
        return compare("cuda", torch.bfloat16)
    cell, _, preset = name.partition(":")
    if cell in ONE_MODEL:
        for other in set(benches) - {preset}:
            del benches[other]
        free()
    if preset not in benches:
        benches[preset] = bench_of(preset, args)
    return CELLS[cell](benches[preset])


def usable() -> bool:
    """Whether the device still answers: after some errors of CUDA nothing runs in a process."""
    if not torch.cuda.is_available():
        return True
    try:
        return bool(torch.ones(1, device="cuda").item())
    except RuntimeError:
        return False


def measure(
    path: Path, content: dict[str, Any], wanted: Sequence[str], args: argparse.Namespace
) -> None:
    """Fill in the cells that are not there, each written as soon as it is done or has failed."""
    began, benches = time.monotonic(), dict[str, Bench]()
    errors, cells = content["errors"], content["cells"]
    # Those that failed before come last: they may fail again, and take the process with them.
    for name in sorted((n for n in wanted if n not in cells), key=lambda n: n in errors):
        if time.monotonic() - began > args.seconds:
            break
        start = time.monotonic()
        try:
            found, text = cell_of(name, benches, args), ""
        except Exception as error:  # the other cells do not depend on this one
            traceback.print_exc()
            found, text = {}, f"{type(error).__name__}: {error}"[:SHOWN]
        seconds = round(time.monotonic() - start, 1)
        if text:
            errors[name] = {"error": text}
            benches.clear()  # whatever the error has left in them
        else:
            errors.pop(name, None)
            cells[name], content["seconds"][name] = found, seconds
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        print(f"{name}: {text or f'{seconds} s'}", file=sys.stderr, flush=True)
        if text and not usable():
            print("the device answers no longer; run the same command again", file=sys.stderr)
            break
        free()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Status 1 where a cell that was asked for has failed."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.efficiency", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--json", type=Path, default=None, help=f"default: {RESULT.relative_to(ROOT)}")
    p.add_argument("--only", help=f"comma list of {', '.join(names())}")
    p.add_argument("--seconds", type=float, default=420, help="no cell is begun after these")
    p.add_argument("--commit", help="the commit's hash, where there is no git to tell it")
    p.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    args = p.parse_args(argv)
    wanted = names() if args.only is None else [n.strip() for n in args.only.split(",")]
    if unknown := [name for name in wanted if name not in names()]:
        raise EvalError(f"--only {unknown[0]}: no cell; known: {', '.join(names())}")
    if not args.dry_run and not torch.cuda.is_available():
        raise EvalError("torch sees no CUDA device; --dry-run checks the script without one")
    path = args.json or (ROOT / "outputs" / "gpu_dry_run.json" if args.dry_run else RESULT)
    content = begin(path, facts(args))
    measure(path, content, wanted, args)
    failed = {n: e["error"] for n, e in content["errors"].items() if n in wanted}
    left = [n for n in names() if n not in content["cells"] and n not in content["errors"]]
    print(
        f"{path}: {len(content['cells'])} cells" + (f"; not yet: {', '.join(left)}" if left else "")
    )
    for name, text in failed.items():
        print(f"failed: {name}: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
