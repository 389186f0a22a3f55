"""Which patches are kept, merged and dropped, drawn over the picture; and how far methods agree.

    python -m analysis.retained_tokens --stages                       # stage by stage
    python -m analysis.retained_tokens --grid --tokens 192,64         # methods x budgets
    python -m analysis.retained_tokens --agreement --limit 48         # overlap of what is kept
    python -m analysis.retained_tokens --images photo.jpg --question "What is this?" --tokens 64

Kept patches show the picture, dropped ones are dark, absorbed ones pale and joined by lines to the
framed token that stands for them. Pictures of any resolution are drawn in their own coordinates,
the crops large and the thumbnail small.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis import agreement, report
from analysis.cli import add_flags, finish, parts, setting_from
from analysis.retained_figures import describe, grid_figure, stages_figure
from analysis.retained_looks import (
    Asked,
    Planned,
    look_at,
    one_of_each,
    parse_methods,
    pick_cases,
    plan,
    title_of,
)
from analysis.setting import Case, Setting, Unknown
from llava.eval.cli import env
from llava.eval.errors import EvalError, run_main
from llava.eval.run_benchmark import parse_numbers
from visiondrop import TowerCache

__all__ = ["compute", "counts", "main", "patches", "plot"]

METHODS = (
    *("visiondrop", "visiondrop+causal=expectation", "visiondrop_div", "visionzip", "fastv"),
    *("sparsevlm", "pyramiddrop", "divprune", "random", "uniform"),
)
TOKENS, TILED_TOKENS = (192, 128, 64, 32), (640, 320, 160)
"""Budgets of a grid; of pictures in tiles."""
ONE, TILED_ONE = 64, 320
"""That of stages and of the agreement."""
TOWER_BYTES = 256 * 2**20
"""Of the vision tower's outputs, which methods share."""
PARTS = {
    "stages": "the picture after each stage of each method, at the first budget (visiondrop, 64)",
    "grid": "what is kept at the end, methods x budgets, on the first picture",
    "agreement": "how far methods keep the same patches, on the first LIMIT pictures",
}


def compute(
    setting: Setting,
    methods: Sequence[str] = METHODS,
    tokens: Sequence[int] = TOKENS,
    cases: Sequence[Case] | None = None,
) -> tuple[list[Asked], list[Planned]]:
    """Ask about pictures under each method at each budget.

    Args:
        methods: as commands name them, "visiondrop+causal=expectation".
        tokens: means of visual tokens over the decoder layers.
        cases: by default the first question of the first picture.

    Returns: what there is to see, and the plan, of which some may not be possible.
    """
    planned = plan(setting, methods, tokens)
    return look_at(setting, cases or setting.first_of_pictures[:1], planned), planned


def patches(looks: Sequence[Asked], every_stage: bool = True) -> Any:
    """A pandas table with a row for each patch that was not dropped.

    Columns: picture (with the question where several are about one), method, tokens, stage, patch
    (its id), view, fate ("kept", "contextual", "absorbed"), to (id of the token that stands for
    it).

    Args:
        every_stage: false for the last alone.
    """
    import pandas as pd

    rows = []
    asked = {(one.shown.case.picture, one.shown.case.question) for one in looks}
    times = Counter(picture for picture, _ in asked)
    for one in looks:
        case, planned = one.shown.case, one.planned
        several = times[case.picture] > 1
        name = f"{case.picture}: {case.question}" if several else case.picture
        about = (name, planned.label, planned.tokens)
        for stage in one.stages if every_stage else one.stages[-1:]:
            rows += [
                (*about, stage.name, p.token, p.view, p.kind, p.to)
                for p in stage.patches
                if p.kind != "dropped"
            ]
    columns = ["picture", "method", "tokens", "stage", "patch", "view", "fate", "to"]
    return pd.DataFrame(rows, columns=columns).astype({"tokens": "Int64"})


def counts(looks: Sequence[Asked]) -> Any:
    """A pandas table with a row for each stage: tokens, patches by fate, and what of the region is
    kept as itself (region) or absorbed (region_absorbed), NaN where no region is known.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "picture": one.shown.case.picture,
                "method": one.planned.label,
                "asked": one.planned.tokens,
                "mean_tokens": one.sample.mean_tokens,
                "stage": stage.name,
                "tokens": stage.tokens,
                **stage.counts(),
                "region": one.share(stage),
                "region_absorbed": one.share(stage, ("absorbed",)),
                "answer": one.answer,
                "right": one.shown.case.answer,
                "full": one.shown.full,
            }
            for one in looks
            for stage in one.stages
        ]
    )


def plot(
    looks: Sequence[Asked],
    stem: Path,
    planned: Sequence[Planned] | None = None,
    joins: bool = False,
) -> list[Path]:
    """`stem`.png and .pdf: a grid of methods and budgets where the plan is given, else stages."""
    if planned is None:
        return stages_figure(looks, stem)
    return grid_figure(looks, planned, stem, joins)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog="python -m analysis.retained_tokens", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_flags(parser, "retained_tokens", 24)
    group = parser.add_argument_group("what is drawn (stages and grid by default)")
    for name, text in PARTS.items():
        group.add_argument(f"--{name}", action="store_true", help=text)
    group.add_argument(
        "--methods", default=env("METHODS"),
        help="with commas between, fields as in visiondrop+causal=expectation",
    )  # fmt: skip
    group.add_argument("--tokens", default=env("TOKENS"), help="budgets, as in 192,64")
    group.add_argument(
        "--picture", default="", metavar="NAME,...",
        help="of the benchmark, or of the folder of --images; NAME:2 takes its second question",
    )  # fmt: skip
    group.add_argument(
        "--pictures", type=int, help="drawn without --picture (3 stage by stage, 1 in a grid)"
    )
    group.add_argument(
        "--joins", action="store_true", help="draw where absorbed patches went in grids, too"
    )
    group.add_argument(
        "--name", default="", help="of the first part's files; others add theirs (name of the part)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    args = build_parser().parse_args(argv)
    wanted = [name for name in PARTS if getattr(args, name)] or ["stages", "grid"]
    methods = parse_methods(args.methods) if args.methods else None
    tokens = parse_numbers("--tokens", args.tokens) if args.tokens else None
    if args.pictures is not None and args.pictures < 1:
        raise EvalError(f"--pictures {args.pictures}: at least 1")
    names = [name.strip() for name in args.picture.split(",") if name.strip()]
    # Any picture can be named, and each gives one question: the limit counts pictures.
    args.limit, limit = None, args.limit
    setting = setting_from(args)
    setting.towers = TowerCache(TOWER_BYTES)
    cases = pick_cases(setting, names, args.pictures or 3)
    found: dict[str, Any] = {}
    figures: list[Path] = []
    about: dict[str, Any] = setting.describe()
    tiled = setting.geometry.crops

    def stem(part: str) -> str:
        if not args.name:
            return part
        return args.name if part == wanted[0] else f"{args.name}_{part}"

    def draw(part: str) -> None:
        one = (TILED_ONE if tiled else ONE,)
        many = TILED_TOKENS if tiled else TOKENS
        grid = part == "grid"
        budgets = tokens or (many if grid else one)
        labels = methods or (METHODS if grid else METHODS[:1])
        some = cases[:1] if grid and not names and args.pictures is None else cases
        looks, planned = compute(setting, labels, budgets if grid else budgets[:1], some)
        figures.extend(plot(looks, args.out / stem(part), planned if grid else None, args.joins))
        found[stem(part)] = patches(looks, every_stage=not grid)
        found[f"{stem(part)}_counts"] = counts(looks)
        about[stem(part)] = {
            "panels": describe(looks),
            "cannot be": {f"{p.label}@{p.tokens}": p.reason for p in planned if not p.method},
            "tiles": {
                one.shown.case.picture: [dataclasses.asdict(g) for g in one.sample.grids if g]
                for one in looks
            },
            "rows": "patches that are not listed were dropped; ids as in traces",
        }
        table = found[f"{stem(part)}_counts"].drop(columns=["right", "full"])
        report.show(table, f"{part}: patches by what became of them")

    def agree() -> None:
        asked = cases if names else one_of_each(setting, limit)
        if len({case.picture for case in asked}) < 2:
            raise Unknown("two pictures or more are needed; give a folder or a higher --limit")
        budgets = tokens or ((TILED_ONE if tiled else ONE),)
        labels = methods or (*METHODS[:-1], "random+seed=1", METHODS[-1])
        planned = plan(setting, labels, budgets[:1])
        pairs, regions = agreement.tables(setting, planned, asked)
        titles = {label: title_of(label) for label in labels}
        name = stem("agreement")
        figures.extend(agreement.plot(pairs, args.out / name, titles))
        found[name], found[f"{name}_regions"] = pairs, regions
        first = pairs[(pairs["a"] == labels[0]) & (pairs["b"] != labels[0])]
        columns = ["b", "at", "iou", "low", "high", "chance", "most"]
        report.show(first[columns], f"agreement with {labels[0]} (all pairs are in the CSV)")
        report.show(regions, "of what the question asks for, kept at the end")

    runs: dict[str, Callable[[], Any]] = {
        "stages": lambda: draw("stages"),
        "grid": lambda: draw("grid"),
        "agreement": agree,
    }
    parts({name: runs[name] for name in wanted})
    return finish(args, "retained_tokens", about, found, figures)


if __name__ == "__main__":
    sys.exit(run_main(main))
