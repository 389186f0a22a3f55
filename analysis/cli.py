"""Flags that the analysis commands share.

What is not given falls back to the environment (MODEL, DATA, LIMIT, OUT, BATCH, DTYPE), as in the
evaluation's commands.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import report
from analysis.setting import Setting, Unknown, open_setting, picture_setting
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.cli import env, parse_limit
from llava.eval.errors import EXIT_OK, EvalError

__all__ = ["add_flags", "finish", "layer_list", "parts", "setting_from"]


def add_flags(
    parser: argparse.ArgumentParser,
    name: str,
    limit: int,
    benchmark: str | Sequence[str] = "textvqa",
) -> None:
    """Which checkpoint, which questions, and where the results go.

    Args:
        name: of the module, whose results go to outputs/analysis/NAME.
        limit: how many of the bundled questions are looked at by default.
        benchmark: the one asked by default; several make --benchmark take any number.
    """
    several = not isinstance(benchmark, str)
    model = parser.add_argument_group("model and questions")
    model.add_argument("--model-path", default=env("MODEL", ""), help="folder or hub id (bundled)")
    model.add_argument("--model-base", default=env("MODEL_BASE"), help="for LoRA and projectors")
    model.add_argument(
        "--benchmark", default=list(benchmark) if several else benchmark,
        choices=sorted(BENCHMARKS), nargs="+" if several else None,
        help=f"({benchmark if not several else ' '.join(benchmark)})",
    )  # fmt: skip
    model.add_argument("--data", default=env("DATA"), help="the benchmark's folder (bundled)")
    model.add_argument(
        "--images", help="a folder of pictures, or one file, in place of a benchmark"
    )
    model.add_argument("--question", default="What is in the picture?", help="asked of --images")
    model.add_argument(
        "--limit", type=parse_limit, default=env("LIMIT", limit, parse_limit),
        help=f"the first N questions, or all ({limit})",
    )  # fmt: skip
    model.add_argument("--batch-size", type=int, default=env("BATCH", 12, int))
    model.add_argument(
        "--dtype", default=env("DTYPE", "auto"),
        help="float32 (default on a CPU), bfloat16, float16 (default on a GPU)",
    )  # fmt: skip
    model.add_argument("--attn-implementation", default=env("ATTN", "sdpa"))
    model.add_argument("--device", default=env("DEVICE", "auto"))
    model.add_argument("--conv-mode", default=env("CONV_MODE", "vicuna_v1"))
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, default=Path(env("OUT", f"outputs/analysis/{name}")))
    out.add_argument("--wandb", action="store_true", help="log to Weights & Biases")


def setting_from(args: argparse.Namespace, **instead: Any) -> Setting:
    """What the flags ask for. Raises `EvalError` before any compute.

    Args:
        instead: options of `open_setting` in place of what the flags say.
    """
    args = argparse.Namespace(**{**vars(args), **instead})
    report.check_logging(args.wandb)
    if args.batch_size < 1:
        raise EvalError(f"--batch-size {args.batch_size}: at least 1")
    options = {
        "limit": args.limit,
        "model_base": args.model_base,
        "batch_size": args.batch_size,
        "dtype": args.dtype,
        "attn_implementation": args.attn_implementation,
        "device": args.device,
        "conv_mode": args.conv_mode,
    }
    warnings.filterwarnings("ignore", message="IProgress not found")
    if args.images:
        model = args.model_path or "checkpoints/pocket-llava"
        return picture_setting(model, args.images, args.question, **options)
    loaded = getattr(args, "loaded", None)
    return open_setting(args.model_path, args.benchmark, args.data, loaded=loaded, **options)


def layer_list(text: str) -> tuple[int, ...]:
    """Layers as in "1,8,15", for argparse."""
    try:
        return tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between") from None


def parts(
    wanted: Mapping[str, Callable[[], Any]], console: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run each part of an analysis; one that cannot run here says why, and the others go on.

    Raises `EvalError` where none can.
    """
    done: dict[str, Any] = {}
    reasons = []
    for name, run in wanted.items():
        try:
            done[name] = run()
        except Unknown as error:
            reasons.append(f"{name}: {error}")
            console(f"left out: {name}: {error}")
    if not done and reasons:
        raise EvalError("nothing of this analysis can run here: " + "; ".join(reasons))
    return done


def finish(
    args: argparse.Namespace,
    name: str,
    about: Mapping[str, Any],
    tables: Mapping[str, Any],
    figures: Sequence[Path],
) -> int:
    """Write each table beside the figures, say where, log where asked to."""
    written = [
        path for key, table in tables.items() for path in report.write(table, args.out / key, about)
    ]
    for path in [*written, *figures]:
        print(f"wrote {path}")
    if args.wandb:
        print(report.log(name, about, tables, figures, args.out))
    return EXIT_OK
