"""Where in the picture, and where in the sequence, scores and methods keep tokens.

Scores are read from the unpruned model (`scores`), methods from what they kept. What a score owes
to the place alone is told apart from what it owes to the picture by three controls: the picture
upside down, a plain grey picture, and the picture's tokens in random orders.

    python -m analysis.positional_bias --limit 288 --tokens 64

A vision tower has learned position embeddings, so that its output, and with it each score, may know
a patch's place whatever the order in which the LLM reads the patches: the shuffled orders move the
place in the sequence alone, the flip moves both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from analysis import report
from analysis.cli import add_flags, finish, layer_list, parts, setting_from
from analysis.position_parts import PositionalBias, refuse
from analysis.position_plots import plot, plot_methods
from analysis.scores import SCORE_NAMES
from analysis.setting import Setting
from llava.eval.errors import EvalError, run_main

__all__ = ["METHODS", "compute", "findings", "main", "plot", "plot_methods"]

METHODS = (
    "fastv", "pyramiddrop", "sparsevlm", "visiondrop", "visiondrop:causal=expectation",
    "visionzip", "divprune", "random", "uniform",
)  # fmt: skip
NOTE = (
    "the vision tower has learned position embeddings, so a patch's features, and each score, may "
    "know its place in the picture whatever the order in which the LLM reads the patches"
)


def compute(
    setting: Setting,
    *,
    layers: Sequence[int] | None = None,
    tokens: int = 64,
    methods: Sequence[str] = METHODS,
    controls: int = 16,
    shuffles: int = 3,
    console: Callable[[str], None] = print,
) -> Any:
    """Measure bias on the first question of each picture.

    Args:
        layers: decoder layers before which scores are read; by default 1, L/4, L/2, 3L/4 and L-1.
        tokens: how many are kept of each score's best, and the budget of methods (true mean).
        methods: "name[:field=value]" each.
        controls: pictures on which the controls are run, the first ones; 0 leaves them out.
        shuffles: random orders of each of these.

    Returns: a pandas table with `position_table.COLUMNS`; parts are "scores", "methods", "flip",
        "grey" and "shuffle". Measures are defined by `position_readings.score_measures` and
        `place_measures` and by the parts, the methods of `PositionalBias`. What cannot be measured
        here is told to `console`, and left out.

    Raises `EvalError`, before any compute, for layers, budgets and methods that there are not.
    """
    bias = PositionalBias(setting, _layers(setting, layers), tokens, controls, shuffles)
    bias.check()
    wanted: dict[str, Callable[[], None]] = {
        f"score {name}": refuse(why) for name, why in bias.missing.items()
    }
    wanted |= {"truth": bias.find_truth, "scores": bias.scores}
    for spec in methods:
        # Names and arguments that there are not stop everything; what this model lacks does not.
        wanted[f"method {spec}"] = bias.method(spec)
    if controls:
        wanted |= {"flip": bias.flip, "grey": bias.grey, "shuffle": bias.shuffle}
    parts(wanted, console)
    return bias.tally.table()


def _layers(setting: Setting, layers: Sequence[int] | None) -> tuple[int, ...]:
    depth = setting.layers
    default = (min(1, depth - 1), depth // 4, depth // 2, 3 * depth // 4, depth - 1)
    chosen = sorted(set(default if layers is None else layers))
    if wrong := [layer for layer in chosen if not 0 <= layer < depth]:
        raise EvalError(f"--layers {wrong[0]}: this decoder has layers 0 to {depth - 1}")
    if not chosen:
        raise EvalError("--layers: no layer given; name one or more, as in 1,4,8")
    return tuple(chosen)


def findings(table: Any) -> dict[str, float]:
    """Every number of a table by "part/name@layer/measure" (methods have no layer)."""
    numbers = table[table["at"] < 0]
    return {
        f"{row.part}/{row.name_}{f'@{row.layer}' if row.layer else ''}/{row.measure}": row.mean_
        for row in numbers.rename(columns={"name": "name_", "mean": "mean_"}).itertuples()
    }


COLUMNS = {
    "scores": {
        "first_last_ratio": "first /last", "position_rank": "r place", "uniform_r": "r even",
        "kept_lower_half": "lower half", "lower_half_gap": "- truth", "recall": "recall",
    },
    "methods": {
        "tokens": "kept", "merged": "merged", "kept_lower_half": "lower half",
        "lower_half_gap": "- truth", "recall": "recall", "precision": "prec.",
    },
    "flip": {
        "content_overlap": "follows content", "place_overlap": "stays in place",
        "content_rank": "r content", "place_rank": "r place",
    },
    "grey": {
        "first_last_ratio": "first /last", "position_rank": "r place",
        "kept_lower_half": "lower half", "real_rank": "r real picture",
    },
    "shuffle": {
        "place_share": "place in sequence", "content_share": "content",
        "patch_share": "of it: patch",
    },
}  # fmt: skip
"""What is printed of each part, and its heading."""
TITLES = {
    "scores": "Scores of the unpruned model: first tenth of the sequence over last, rank "
    "correlation with the place, correlation with uniform attention; the best tokens",
    "methods": "What methods keep, after their last stage",
    "flip": "Picture upside down: overlap of what is kept with its mirror image, and with itself",
    "grey": "Plain grey picture",
    "shuffle": "Visual tokens in random orders: shares of the variance of ranks",
}


def show(table: Any) -> None:
    """Print the chief numbers, part by part, and what no bias or chance would give."""
    import pandas as pd

    numbers = table[table["at"] < 0]
    nan = float("nan")
    for part, measures in COLUMNS.items():
        own = numbers[numbers["part"] == part]
        rows = []
        for (name, layer), group in own.groupby(["name", "layer"], sort=False):
            means = group.set_index("measure")["mean"]
            said = SCORE_NAMES.get(name, name.replace(":", ", "))
            rows.append([said, layer, *(float(means.get(m, nan)) for m in measures)])
        if rows:
            neutral = own.groupby("measure")["neutral"].mean()
            chance = [float(neutral.get(m, nan)) for m in measures]
            rows.append(["no bias, or chance", "", *chance])
            printed = pd.DataFrame(rows, columns=["", "layer", *measures.values()])
            if part == "methods":
                del printed["layer"]
            report.show(printed, TITLES[part], digits=2)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="analysis.positional_bias",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, "positional_bias", limit=288)
    group = parser.add_argument_group("positional bias")
    group.add_argument("--layers", type=layer_list, help="decoder layers (1, L/4, L/2, 3L/4, L-1)")
    group.add_argument("--tokens", type=int, default=64, help="kept by scores and methods (64)")
    group.add_argument("--methods", default=",".join(METHODS), help="name[:field=value],...")
    group.add_argument("--controls", type=int, default=16, help="pictures for the controls (16)")
    group.add_argument("--shuffles", type=int, default=3, help="random orders of each (3)")
    group.add_argument("--map-layer", type=int, help="decoder layer that is drawn (L/2)")
    group.add_argument("--name", default="positional_bias", help="of the files that are written")
    args = parser.parse_args(argv)
    setting = setting_from(args)
    methods = [spec.strip() for spec in args.methods.split(",") if spec.strip()]
    layers = _layers(setting, args.layers)
    drawn = layers[len(layers) // 2] if args.map_layer is None else args.map_layer
    if drawn not in layers:
        raise EvalError(f"--map-layer {drawn} is not among --layers {', '.join(map(str, layers))}")
    table = compute(
        setting, layers=layers, tokens=args.tokens, methods=methods, controls=args.controls,
        shuffles=args.shuffles,
    )  # fmt: skip
    show(table)
    about = {
        **setting.describe(),
        "questions_read": len(setting.first_of_pictures),
        "tokens": args.tokens,
        "layers": list(layers),
        "controls": args.controls,
        "shuffles": args.shuffles,
        "note": NOTE,
    }
    figures = plot(table, args.out / args.name, setting.geometry.grid, drawn)
    if (table["part"] == "methods").any():
        figures += plot_methods(table, args.out / f"{args.name}_methods")
    return finish(args, "positional_bias", about, {args.name: table}, figures)


if __name__ == "__main__":
    sys.exit(run_main(main))
