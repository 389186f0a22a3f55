"""Does a text query mark the region it asks for, and do visual and text states mix with depth?

    python -m analysis.semantic_misalignment --help

(a) Overlap of each score's top tokens with the region that a question asks for, layer by layer.
(b) Similarity of visual and text states, and what a linear reader tells from a visual token's.
(c) Whether top tokens change with the question on one picture, and Figure 4 of such a pair.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from analysis import report
from analysis.cli import add_flags, finish, layer_list, parts, setting_from
from analysis.semantic_figure import choose_pair, example, plot
from analysis.semantic_tables import mixing_table, overlap_table, questions_table
from analysis.semantic_walk import SCORES, Seen, see, text_states
from analysis.setting import Setting, Unknown
from llava.eval.errors import EvalError, run_main

__all__ = ["check", "compute", "findings", "plot"]

NAME = "semantic_misalignment"
TOKENS = 64
EACH = 8


def check(setting: Setting, layers: Sequence[int] | None, tokens: int) -> tuple[int, ...]:
    """The layers to look at, all by default. Raises `EvalError` for what cannot be looked at."""
    found = tuple(range(setting.layers)) if layers is None else tuple(layers)
    wrong = [layer for layer in found if not 0 <= layer < setting.layers]
    if wrong or not found:
        raise EvalError(f"--layers {wrong or 'none'}: this decoder has 0 to {setting.layers - 1}")
    if not 1 <= tokens < setting.geometry.num_patches:
        raise EvalError(
            f"--tokens {tokens}: a picture has {setting.geometry.num_patches}; give 1 or more and "
            "fewer than that"
        )
    return found


def compute(
    setting: Setting,
    layers: Sequence[int] | None = None,
    tokens: int = TOKENS,
    *,
    each: int = EACH,
    seed: int = 0,
    seen: list[Seen] | None = None,
) -> pd.DataFrame:
    """One long table of everything (`semantic_tables.COLUMNS`); parts that cannot be had are left
    out with a line that says why.

    Args:
        layers: 0-based, all by default.
        tokens: size of the top sets that are compared.
        each: tokens of each role (asked for, other objects, background) of a case that readers get.
        seen: what was seen before, in place of a walk.
    """
    chosen = check(setting, layers, tokens)
    seen = see(setting, chosen, tokens, each, seed) if seen is None else seen
    if not setting.geometry.has_cls:
        print("left out: CLS: this vision tower has no CLS token whose attention could be read")

    def mixing() -> pd.DataFrame:
        if len({s.case.picture for s in seen}) < 4:
            raise Unknown("states of fewer than 4 pictures say nothing of how they go together")
        return mixing_table(seen, chosen, text_states(setting, chosen, seed), seed)

    done = parts(
        {
            "overlap": partial(overlap_table, seen, chosen, tokens),
            "questions": partial(questions_table, seen, chosen),
            "mixing": mixing,
        }
    )
    return pd.concat(done.values(), ignore_index=True)


def findings(table: pd.DataFrame) -> dict[str, float]:
    """The numbers that answer the claim, by stable names; those that the table has."""
    out: dict[str, float] = {}

    def mean(name: str, rows: pd.DataFrame) -> None:
        for end in ("mean", "low", "high") if len(rows) == 1 else ():
            out[name if end == "mean" else f"{name}_{end}"] = float(rows[end].iloc[0])

    every = table[table["kind"].isin(["all", "apart", "text", "last"])]
    for score in SCORES:
        own = every[(every["score"] == score) & (every["measure"] == "auc")]
        by_layer = own[own["part"] == "overlap"]
        if len(by_layer):
            best = by_layer.loc[by_layer["mean"].idxmax()]
            out[f"auc_{score}_best"], out[f"auc_{score}_best_layer"] = best["mean"], best["layer"]
            mean(f"auc_{score}_first", by_layer.head(1))
            mean(f"auc_{score}_final", by_layer.tail(1))
        mean(f"auc_{score}_late_minus_early", own[own["part"] == "late_minus_early"])
        same = table[(table["measure"] == "same") & (table["kind"] == "apart")]
        values = same[same["score"] == score]["mean"]
        if len(values):
            out[f"same_{score}_lowest"], out[f"same_{score}_highest"] = values.min(), values.max()
    for score in ("cls", "random"):
        mean(f"auc_{score}", every[(every["score"] == score) & (every["measure"] == "auc")])
    mean("same_random", same[same["score"] == "random"])
    mixing = table[table["part"] == "mixing"]
    for (measure, score, kind), rows in mixing.groupby(["measure", "score", "kind"]):
        name = "_".join(word for word in (measure, score, kind) if word != "all")
        mean(f"{name}_first", rows.head(1))
        mean(f"{name}_final", rows.tail(1))
        if rows["mean"].notna().any():
            best = rows.loc[rows["mean"].idxmax()]
            out[f"{name}_most"], out[f"{name}_most_layer"] = best["mean"], best["layer"]
    return {name: float(value) for name, value in out.items() if np.isfinite(value)}


def _summary(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Tables by layer for the terminal."""
    wide = []
    for part, measure, kind, title in (
        ("overlap", "auc", "all", "Area under the ROC curve: a score finds what is asked for"),
        ("questions", "same", "apart", "Overlap of the top tokens of two questions (IoU)"),
        ("questions", "selective", "apart", "Recall of the own region less that of the other's"),
    ):
        rows = table[
            (table["part"] == part) & (table["measure"] == measure) & (table["kind"] == kind)
        ]
        if len(rows):
            wide.append((title, _by_layer(rows, "score")))
    mixing = table[table["part"] == "mixing"]
    for measures, title in (
        (["cka"], "Alignment of mean states with those of the text (debiased CKA)"),
        (["cosine", "moved"], "Cosine of means; how far a grey picture moves text states"),
        (["reader"], "Linear readers of a visual token's state (area under the ROC curve)"),
    ):
        rows = mixing[mixing["measure"].isin(measures)]
        if len(rows):
            named = rows.assign(what=rows["measure"] + "\n" + rows["score"] + "\n" + rows["kind"])
            wide.append((title, _by_layer(named, "what")))
    return wide


def _by_layer(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    rows = rows.assign(layer=rows["layer"].astype(str).replace("<NA>", "-"))
    order, names = rows["layer"].unique(), rows[column].unique()
    return rows.pivot(index="layer", columns=column, values="mean").loc[order, names].reset_index()


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.semantic_misalignment", description=(__doc__ or "").split("\n")[0]
    )
    add_flags(parser, NAME, 96)
    what = parser.add_argument_group("what is looked at")
    what.add_argument("--layers", type=layer_list, help='0-based, as in "2,8,14" (all)')
    what.add_argument("--tokens", type=int, default=TOKENS, help=f"size of top sets ({TOKENS})")
    what.add_argument("--picture", help="that two questions are shown on (the first that has two)")
    what.add_argument(
        "--shown-layers", type=layer_list, help="whose maps are drawn (four of --layers)"
    )
    what.add_argument("--seed", type=int, default=0, help="of folds and of kept tokens")
    what.add_argument("--stem", default=NAME, help="name of the files")
    args = parser.parse_args(argv)
    setting = setting_from(args)
    layers = check(setting, args.layers, args.tokens)
    count = len(layers)
    shown = check(setting, args.shown_layers, args.tokens) if args.shown_layers else None
    shown = shown or tuple(sorted({layers[i * (count - 1) // 5] for i in (1, 2, 3, 4)}))
    try:
        drawn = example(setting, choose_pair(setting.cases, args.picture), shown)
    except Unknown as error:
        print(f"left out: two questions on one picture: {error}")
        drawn = None
    seen = see(setting, layers, args.tokens, EACH, args.seed)
    table = compute(setting, layers, args.tokens, seed=args.seed, seen=seen)
    figures = plot(table, args.out / args.stem, drawn)
    for title, rows in _summary(table):
        report.show(rows, title)
    about = {
        **setting.describe(), "layers": list(layers), "tokens": args.tokens, "seed": args.seed,
        "findings": findings(table),
    }  # fmt: skip
    return finish(args, NAME, about, {args.stem: table}, figures)


if __name__ == "__main__":
    sys.exit(run_main(main))
