"""What methods cost on a model: FLOPs by formula and by counter, KV cache, time, memory, energy.

    python -m visiondrop.profile --preset llava-1.5-7b --method visiondrop --tokens 64 --flops
    python -m visiondrop.profile --preset llava-next-7b --device cuda --method all --tokens 640,320
    python -m visiondrop.profile --model checkpoints/pocket-llava --tokens 64 --json pocket.json
    python -m visiondrop.profile --preset llava-1.5-7b --layers 2 --device cpu --dtype bfloat16

Presets have the sizes of published models (but llava-next-300m, for CPUs, is none) and random
weights: no cost depends on the weights. With --flops nothing is timed, no weights are made and no
product is computed: seconds on a laptop. Times are of one machine; each method takes turns with the
unpruned model ("full", with the same attention and the same --engine), and ratios are taken turn by
turn. "stock" is the model without anything of ours, which also runs the vision tower's last layer.
Stopped, the same command goes on (--json).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from visiondrop.adapters import Geometry, geometry_of
from visiondrop.engine import ENGINES, Engine, engine_named
from visiondrop.profiling.cases import STOCK, Case, cases_of, first_words, key_of, numbers
from visiondrop.profiling.cost import as_run, plan
from visiondrop.profiling.counting import SkipProducts, count_prefill
from visiondrop.profiling.inputs import Setting, setting_of
from visiondrop.profiling.latency import measure
from visiondrop.profiling.machine import check_room, machine, open_model, versions
from visiondrop.profiling.presets import PRESETS, random_model, weightless_model
from visiondrop.profiling.rows import Row, Store, cells, head, tera, text_table

__all__ = ["main"]

DTYPES = ("float16", "bfloat16", "float32")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m visiondrop.profile", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=PRESETS, help="sizes of a model, random weights")
    which.add_argument("--model", type=Path, help="a folder with a Hugging Face LLaVA (1.5, NeXT)")
    p.add_argument("--method", default="visiondrop", help="comma list, or all; full and stock too")
    p.add_argument("--tokens", help="comma list: mean over the layers (64; any resolution: 320)")
    p.add_argument(
        "--method-arg", action="append", default=[], metavar="FIELD=VALUE", help="of every method"
    )
    p.add_argument("--flops", action="store_true", help="time nothing, make no weights")
    p.add_argument("--no-count", action="store_true", help="FLOPs by formula alone")
    p.add_argument("--new-tokens", default="1,16,128", help="comma list")
    p.add_argument("--repeats", type=int, default=10)
    p.add_argument("--warmup", type=int, default=3)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--dtype", choices=DTYPES, help="float16 on CUDA and for --flops, else float32")
    p.add_argument("--device", default=None, help="cuda where there is one, else cpu")
    p.add_argument("--attn", default="sdpa", choices=("sdpa", "eager", "flash_attention_2"))
    p.add_argument(
        "--engine", default="none", choices=sorted(ENGINES), help="of every method, full among them"
    )
    p.add_argument("--layers", type=int, help="decoder layers of a preset, for a first look")
    p.add_argument("--text-tokens", type=int, help="66; any resolution: 113 with 48 newlines")
    p.add_argument("--threads", type=int, help="of a CPU (torch's own)")
    p.add_argument("--clock", choices=("wall", "processor"), default="wall")
    p.add_argument("--json", type=Path, help="write the figures here, row by row")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's text. Bad input ends it with status 2, before any compute."""
    args = parser().parse_args(argv)
    logging.disable_progress_bar()  # of loading weights: the table is what is read
    try:
        return run(args)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Check, measure row by row, print."""
    check(args)
    config = read_config(args)
    setting = setting_of(config, args.text_tokens)
    usual = "320" if setting.tiles > 1 else "64"
    args.tokens = usual if args.tokens is None else args.tokens
    geometry = geometry_of(config)
    with tempfile.TemporaryDirectory() as folder:
        cases = cases_of(args.method, args.tokens, args.method_arg, config, Path(folder))
        store = Store(args.json, facts_of(args, setting))
        keys = [key_of(case, args.method_arg) for case in cases]
        todo = [(k, c) for k, c in zip(keys, cases, strict=True) if k not in store.rows]
        model: Any = None
        for key, case in todo:
            if model is None and not case.reason:
                model = make_model(args, config)
            try:
                row = fill(case, args, setting, geometry, model)
            except ValueError as error:  # what a method finds out only when it sees the prompt
                if len(cases) == 1:
                    raise
                row = Row(case.name, case.tokens, first_words(error))
            store.add(key, row, keys)
            print(f"{row.method} {case.tokens or ''}: done", file=sys.stderr)
        if not todo:
            store.write(keys)
    rows = [store.rows[key] for key in keys]
    new_tokens = numbers("--new-tokens", args.new_tokens, int)
    names = head(new_tokens)
    print(text_table(names, [cells(row, new_tokens) for row in rows]))
    print(f"\n{note(args, setting, store.facts)}")
    for row in rows:
        if row.remark:
            print(f"{row.method}: {row.remark}.")
        if row.method == STOCK and row.faster and row.faster["1"]["low"] > 1:
            print(f"The stock model is {row.faster['1']['median']:.2f} times as fast as full: "
                  "a speed-up over it is that much smaller.")  # fmt: skip
        if row.recordings:
            print(f"{row.method}: {row.recordings} recordings, with those of full, in "
                  f"{row.recording_s:.1f} s before the first turn.")  # fmt: skip
    deviations = [row.deviation for row in rows if row.deviation is not None]
    if deviations:
        print(f"Counter and formula differ by {max(deviations):.2%} at most (what runs, choosing "
              "apart).")  # fmt: skip
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be, with value, limit and remedy."""
    for name in ("repeats", "batch", "threads", "layers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: at least 1 is needed")
    if args.warmup < 0:
        raise ValueError(f"--warmup {args.warmup}: at least 0 is needed")
    if args.layers and not args.preset:
        raise ValueError("--layers is for presets; a model has the layers that it has")
    if args.flops and args.batch > 1:
        raise ValueError(f"--batch {args.batch}: --flops is of one prompt; leave one of them out")
    args.device = args.device or ("cuda" if torch.cuda.is_available() and not args.flops else "cpu")
    try:
        kind = torch.device(args.device).type
    except RuntimeError:
        raise ValueError(f"--device {args.device}: not a device; cuda, cuda:1 or cpu") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch sees no CUDA device; use --device cpu")
    if args.attn == "flash_attention_2" and kind != "cuda":
        raise ValueError(f"--attn {args.attn} needs a CUDA device, not {args.device}; use sdpa")
    if args.engine != "none" and args.flops:
        raise ValueError(f"--engine {args.engine}: --flops runs nothing; leave one of them out")
    if args.engine.startswith("graphs") and kind != "cuda":
        raise ValueError(
            f"--engine {args.engine} needs a CUDA device, not {args.device}; use compile or none"
        )
    if args.clock == "processor" and kind != "cpu":
        raise ValueError(f"--clock processor cannot time {args.device}: use --clock wall")
    counts = numbers("--new-tokens", args.new_tokens, int)
    if min(counts) < 1:
        raise ValueError(f"--new-tokens {min(counts)}: at least 1 is needed")
    half = "float16" if kind == "cuda" or args.flops else "float32"
    args.dtype = args.dtype or half
    if args.threads:
        torch.set_num_threads(args.threads)


def read_config(args: argparse.Namespace) -> Any:
    """The configuration of the preset or of the model."""
    if args.preset:
        return PRESETS[args.preset].config(args.layers)
    return open_model(args.model)


def facts_of(args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """What the figures depend on."""
    settings = {
        "model": args.preset or args.model.name,
        "layers": setting.config.text_config.num_hidden_layers,
        "weights": "none" if args.flops else "random" if args.preset else "of the model",
        "visual_tokens": setting.patches,
        "tiles": setting.tiles,
        "text_tokens": setting.text_tokens,
        "newlines": setting.newlines,
        "device": torch.device(args.device).type,
        "dtype": args.dtype,
        "attention": args.attn,
        "engine": args.engine,
        "kernels": os.environ.get("VISIONDROP_KERNELS", "auto"),
        "counted": not args.no_count,
        "timed": not args.flops,
    }
    if not args.flops:
        new_tokens = sorted({1, *numbers("--new-tokens", args.new_tokens, int)})
        settings |= {name: getattr(args, name) for name in ("batch", "warmup", "repeats", "clock")}
        settings["new_tokens"] = new_tokens
    return {
        "machine": machine(torch.device(args.device)),
        "versions": versions(),
        "settings": settings,
    }


def make_model(args: argparse.Namespace, config: Any) -> Any:
    """With random weights, the model's own, or none; the attention as asked for."""
    if args.flops:
        config._attn_implementation = args.attn
        return weightless_model(config)
    dtype = getattr(torch, args.dtype)
    check_room(config, dtype, torch.device(args.device))
    if args.preset:
        model = random_model(config, dtype, args.device)
        model.set_attn_implementation(args.attn)
        return model
    return open_model(args.model, dtype, args.device, args.attn)


def fill(
    case: Case, args: argparse.Namespace, setting: Setting, geometry: Geometry, model: Any
) -> Row:
    """All figures of one row."""
    row = Row(case.name, case.tokens, case.reason, case.remark)
    if case.reason:
        return row
    method = case.method
    row.settings = {} if method is None else method.to_dict()
    if "clip" in row.settings and not any(a.startswith("clip=") for a in args.method_arg):
        row.settings["clip"] = "random weights"
    try:
        planned = plan(setting, method, getattr(torch, args.dtype).itemsize, geometry.has_cls)
    except ValueError:
        planned = None  # the counter and the clock still tell
    if planned is not None:
        row.mean_tokens = planned.mean_tokens
        row.tflops, row.parts = planned.whole.total / 1e12, tera(planned.whole)
        row.tflops_run, row.parts_run = planned.run.total / 1e12, tera(planned.run)
        row.kv_bytes, row.kv_bytes_by_layer = sum(planned.kv_bytes), planned.kv_bytes
    if not args.no_count:
        inputs, options = setting.inputs(model), setting.options()
        if args.flops:
            with SkipProducts():
                counted = count_prefill(model, inputs, method, **options)
        else:
            counted = count_prefill(model, inputs, method, **options)
        row.tflops_counted = counted.parts.total / 1e12
        row.parts_counted = tera(counted.parts)
        row.tflops_selection = counted.choosing / 1e12
        if counted.samples:
            row.measured_tokens = counted.samples[0].mean_tokens
        if planned is not None:
            run = as_run(setting, counted)
            row.tflops_run, row.parts_run = run.total / 1e12, tera(run)
    if not args.flops:
        times = measure(
            model, setting.inputs(model, args.batch), method,
            new_tokens=numbers("--new-tokens", args.new_tokens, int), warmup=args.warmup,
            repeats=args.repeats, clock=args.clock, engine=engine_of(args, case),
            **setting.options(args.batch),
        )  # fmt: skip
        for name, value in asdict(times).items():
            setattr(row, name, value)
    return row


def engine_of(args: argparse.Namespace, case: Case) -> Engine | None:
    """A new one for each row, so that no row profits from what another one recorded; none for the
    stock model.
    """
    return None if case.method is None else engine_named(args.engine)


def note(args: argparse.Namespace, setting: Setting, facts: dict[str, Any]) -> str:
    """What stands below the table."""
    where = facts["machine"] | facts["versions"] | facts["settings"]
    text = (
        f"{where['model']}: one picture of {setting.patches} visual tokens, {setting.text_tokens} "
        f"other tokens, batch {args.batch}. TFLOPs: the paper's counting (whole tower, LM head at "
        "all positions); run: what runs, by formula; counted: the same by torch's counter; "
        "choosing: what the method spends on top, counted. "
    )
    if not args.flops:
        text += (
            "Times: median (quartiles); faster: than full in the same turn; selection and of rest: "
            "time at the method's stages, and over the rest of its prefill. "
        )
    where["device"] = facts["machine"]["device"]
    shown = ("device", "threads", "dtype", "attention", "engine", "torch", "transformers")
    return text + ", ".join(f"{name} {where[name]}" for name in shown) + "."


if __name__ == "__main__":
    sys.exit(main())
