"""What each method's choice costs: time of selection over time of the prefill that remains.

    python -m benchmarks.methods                               # every method, 576 patches
    python -m benchmarks.methods --patches 576 2916 --markdown docs/results/methods_overhead.md
    python -m benchmarks.methods --methods fastv divprune --tokens 64 --repeats 9

A LLaVA of moderate width with random weights (no time depends on their values), one picture, one
thread, processor time. "Choosing" is all that a method does at its stages: scores, selection,
merging, the projections that they need, and a text encoder where it has one. "The rest" is what is
left of the same prefill: vision tower and decoder; "of the LLM" leaves the tower out. The tower
runs once and its output is shared (except for methods inside it); its time is measured apart,
before the cases of a picture size. Results are kept case by case: stopped, the same command goes
on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods_report import Row, cells, markdown, over_limit
from benchmarks.setting import GEOMETRIES, QUESTION, machine, prompt, random_clip, random_model
from visiondrop import Reducer, TowerCache
from visiondrop.adapters import Geometry, geometry_of
from visiondrop.methods import METHODS, build_method
from visiondrop.profiling.latency import Stopwatch, quartiles

DEFAULTS: dict[str, Any] = {
    "geometry": "medium",
    "patches": [576],
    "tokens": [192, 64, 32],
    "methods": None,
}
DEFAULTS |= {"text_tokens": 66, "repeats": 5}
STAGES = ("encoder_stage", "projected_stage", "tower_block", "prompt_stage", "llm_stage")


class Watch:
    """Adds up the time that a method spends in its stages."""

    def __init__(self, method: Reducer, stopwatch: Stopwatch):
        self.spent, self.calls = 0.0, 0
        for name in STAGES:
            setattr(method, name, self._timed(getattr(method, name), stopwatch))

    def _timed(self, stage: Any, stopwatch: Stopwatch) -> Any:
        def timed(view: Any) -> Any:
            stopwatch.start()
            out = stage(view)
            self.spent += stopwatch.stop()
            self.calls += 1
            return out

        return timed


@torch.inference_mode()
def tower_time(model: Any, warmup: int, repeats: int, clock: str = "processor") -> float:
    """Median time of the unpruned vision tower and projector on one picture, in seconds."""
    pixels = prompt(model, 1)["pixel_values"]
    stopwatch, seconds = Stopwatch(model.device, clock), []
    for _ in range(warmup + repeats):
        stopwatch.start()
        model.get_image_features(pixel_values=pixels)
        seconds.append(stopwatch.stop())
    return statistics.median(seconds[warmup:])


@torch.inference_mode()
def measure(
    model: Any,
    method: Reducer,
    row: Row,
    tower: float,
    cache: TowerCache,
    text_tokens: int,
    warmup: int,
    repeats: int,
    clock: str = "processor",
) -> Row:
    """Fill `row` in by prefills with `method`.

    Args:
        tower: seconds of the bare vision tower.
        cache: holds the tower's output from the first prefill on, for all methods that read it.
    """
    inputs = prompt(model, text_tokens)
    inner, outer = (Stopwatch(model.device, clock) for _ in range(2))
    watch = Watch(method, inner)
    inside_tower = method.before_llm and method.before == "tower"
    shared = None if inside_tower else cache
    choosing, rest = [], []
    for turn in range(warmup + repeats):
        watch.spent, watch.calls = 0.0, 0
        with method(model, tower_cache=shared, questions=[QUESTION]) as trace:
            trace.set_pictures(None if inside_tower else ["picture"])
            if shared is not None and not shared.misses:
                model(**inputs, use_cache=True, logits_to_keep=1)  # fills it
                trace.clear()
                watch.spent, watch.calls = 0.0, 0
            outer.start()
            model(**inputs, use_cache=True, logits_to_keep=1)
            whole = outer.stop()
        if turn >= warmup:
            choosing.append(watch.spent)
            rest.append(whole - watch.spent)
    row.mean_tokens = statistics.fmean(trace.samples[0].tokens_per_layer)
    row.stages = watch.calls
    row.choosing, row.tower = statistics.median(choosing), tower
    remains = [r if inside_tower else r + tower for r in rest]
    shares = [c / r for c, r in zip(choosing, remains, strict=True)]
    row.share, row.share_quartiles = statistics.median(shares), quartiles(shares)
    if not inside_tower:
        row.llm = statistics.median(rest)
        row.share_llm = statistics.median(c / r for c, r in zip(choosing, rest, strict=True))
    return row


def build(name: str, tokens: int, geometry: Geometry, clip: Path) -> Reducer | str:
    """The method at a true mean, or why there is none."""
    cls = METHODS[name]
    if not cls.budgeted():
        return "takes no budget"
    if "frames" in cls.needs:
        return "needs several frames"
    try:
        args = {"clip": str(clip)} if "text encoder" in cls.needs else {}
        return build_method(name, tokens, geometry=geometry, args=args)
    except ValueError as error:
        text = str(error)
        found = text.find("not reachable, least is")
        if found >= 0:
            return text[found:].split(" (")[0].split(" with")[0]
        return text.split(";")[0].split(":")[0].removeprefix(f"{name!r} ").split(" (")[0]


class Store:
    """Rows on the disk, case by case, with the settings that they belong to."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        self.rows: dict[str, Row] = {}
        if path.is_file():
            content = json.loads(path.read_text())
            if content["settings"] != settings:
                raise SystemExit(
                    f"error: {path} holds figures of other settings ({content['settings']} there, "
                    f"{settings} here); choose another file with --json, or remove it"
                )
            for key, row in content["rows"].items():
                low_high = row.pop("share_quartiles")
                self.rows[key] = Row(**row, share_quartiles=low_high and tuple(low_high))

    def add(self, key: str, row: Row) -> None:
        self.rows[key] = row
        content = {"settings": self.settings, "rows": {k: asdict(r) for k, r in self.rows.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".tmp")
        part.write_text(json.dumps(content, indent=1))
        os.replace(part, self.path)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--geometry", choices=GEOMETRIES, default=DEFAULTS["geometry"])
    parser.add_argument(
        "--patches",
        type=int,
        nargs="+",
        default=DEFAULTS["patches"],
        help="squares: 576 = 24 x 24, 2916 = 54 x 54",
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=DEFAULTS["tokens"])
    parser.add_argument("--methods", nargs="+", default=None, help="all by default")
    parser.add_argument("--text-tokens", type=int, default=DEFAULTS["text_tokens"])
    parser.add_argument("--repeats", type=int, default=DEFAULTS["repeats"])
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "processor"), default="processor")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/methods.json"))
    parser.add_argument("--markdown", type=Path, help="write the tables here, too")
    args = parser.parse_args(argv)
    for patches in args.patches:
        if round(patches**0.5) ** 2 != patches or patches < 4:
            parser.error(
                f"--patches {patches}: a square number of patches is needed, as 576 or 2916"
            )
    if unknown := [name for name in args.methods or [] if name not in METHODS]:
        parser.error(f"--methods {unknown[0]}: unknown; known: {', '.join(METHODS)}")
    if args.clock == "processor" and args.device != "cpu":
        parser.error(f"--clock processor cannot time {args.device}: use --clock wall")
    return args


def main(argv: list[str] | None = None) -> list[Row]:
    """Measure, print, write."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    names = args.methods or [name for name in METHODS if name != "full"]
    store: Store | None = None
    with tempfile.TemporaryDirectory() as folder:
        clip = random_clip(args.geometry, Path(folder) / "clip")
        for patches in args.patches:
            side = 14 * round(patches**0.5)
            model, described = random_model(args.geometry, torch.float32, args.device, side)
            if store is None:
                settings = {
                    "description": described,
                    "text_tokens": args.text_tokens,
                    "repeats": args.repeats,
                    "warmup": args.warmup,
                    "clock": args.clock,
                    "machine": machine(model),
                }
                store = Store(args.json, settings)
            cases = [(f"{patches}/{name}/{t}", name, t) for name in names for t in args.tokens]
            todo = [case for case in cases if case[0] not in store.rows]
            cache = TowerCache(2**31)
            turns = (args.warmup, args.repeats, args.clock)
            tower = tower_time(model, *turns) if todo else 0.0
            for key, name, tokens in todo:
                row = Row(name, patches, tokens)
                method = build(name, tokens, geometry_of(model), clip)
                if isinstance(method, str):
                    row.reason = method
                else:
                    measure(model, method, row, tower, cache, args.text_tokens, *turns)
                store.add(key, row)
                print("  ".join(f"{c:>12}" for c in (str(patches), *cells(row))), flush=True)
            del model
    assert store is not None
    order = {name: i for i, name in enumerate(METHODS)}
    wanted = {f"{p}/{n}/{t}" for p in args.patches for n in names for t in args.tokens}
    rows = sorted(
        (row for key, row in store.rows.items() if key in wanted),
        key=lambda row: (row.patches, order[row.method], -row.tokens),
    )
    for line in over_limit(rows):
        print(line)
    if args.markdown:
        command = "python -m benchmarks.methods"
        for flag in ("geometry", "patches", "tokens", "methods", "text_tokens", "repeats"):
            value = getattr(args, flag)
            if value is not None and value != DEFAULTS[flag]:
                words = value if isinstance(value, list) else [value]
                command += f" --{flag.replace('_', '-')} {' '.join(map(str, words))}"
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        part = args.markdown.with_suffix(".tmp")
        part.write_text(markdown(rows, store.settings, command), encoding="utf-8")
        os.replace(part, args.markdown)
        print(f"wrote {args.markdown}")
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() is not None else 1)
