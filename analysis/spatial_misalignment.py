"""Where kept tokens lie: do they show what an answer needs but the question does not name, and do
they cover the picture?

    python -m analysis.spatial_misalignment                       # bundled GQA and VQAv2
    python -m analysis.spatial_misalignment --images FOLDER       # coverage alone, of any pictures

Recall needs data that knows what a question asks for; coverage needs nothing but the picture.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from analysis import coverage, report
from analysis.cli import add_flags, finish, parts, setting_from
from analysis.kept_sets import Span, over_places, spans, traces
from analysis.region_recall import GROUPS, OTHERS, group_of, missed, recall, wanted
from analysis.setting import Case, Setting, Unknown
from analysis.shown import Shown, shown_by
from analysis.spatial_plots import name_of_method, plot
from analysis.summaries import findings_of, summarise
from llava.eval.benchmarks import get_benchmark
from llava.eval.errors import EvalError, run_main
from llava.eval.loading import default_aspect_ratio
from llava.eval.truth import Objects
from visiondrop import TowerCache
from visiondrop.trace import SampleTrace

__all__ = ["BUDGETS", "METHODS", "compute", "findings", "plot", "spread", "summaries"]

METHODS = (
    "visiondrop", "visiondrop+causal=expectation", "visionzip", "divprune",
    "fastv", "pyramiddrop", "sparsevlm", "random", "uniform", "oracle",
)  # fmt: skip
BUDGETS = (192, 128, 64, 32)
ASKED = ("relation", "place", "counting")
"""Groups of questions whose words do not name all that they need, and counting."""
TOWER_BYTES = 2**30

RECALL = (
    "patches", "named", "unnamed", "gap", "named_over", "unnamed_over", "complete",
    "named_chance", "unnamed_chance", "named_merged", "unnamed_merged", "named_fine",
    "unnamed_fine", "spent_named", "spent_unnamed", "spent_beside", "spent_nothing",
    "spent_named_even", "spent_unnamed_even", "spent_beside_even", "spent_nothing_even",
)  # fmt: skip
RECALL_ENDS = ("named", "unnamed", "gap", "named_over", "unnamed_over", "complete")
COVERAGE = (
    "patches", "mean", "far", "hole", "hole_down", "upper", "lower", "sag", "in_lower",
    "mean_random", "mean_lattice", "far_random", "far_lattice", "hole_random", "hole_lattice",
    "mean_over", "hole_over", "missed", "missed_chance", "missed_over",
)  # fmt: skip
COVERAGE_ENDS = ("mean", "hole", "sag", "in_lower", "mean_over", "hole_over", "missed_over")


def objects_of(setting: Setting) -> dict[str, Objects]:
    """What each picture shows, those that it is known of. Raises `Unknown` where there is none."""
    found, reason = {}, "there is no picture"
    for case in setting.first_of_pictures:
        try:
            found[case.picture] = setting.objects(case)
        except Unknown as error:
            reason = str(error)
    if not found:
        raise Unknown(reason)
    return found


def known_cases(
    setting: Setting, objects: Mapping[str, Objects], groups: Sequence[str]
) -> list[Case]:
    """Cases of some groups, all where none are named, of which is known what they need.

    Raises `Unknown` where there is none.
    """
    found = [c for c in setting.cases if c.region and c.picture in objects]
    if not found:
        raise Unknown("which patches the questions need is not known; bundled sets say so")
    chosen = [c for c in found if not groups or group_of(c.kind) in groups]
    if not chosen:
        there = ", ".join(sorted({group_of(c.kind) for c in found}))
        raise Unknown(f"no question of these data is of {', '.join(groups)}; there are: {there}")
    return chosen


def spread(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """At most `limit` cases, spread over groups of questions and over pictures, in their order."""
    if limit is None or limit >= len(cases):
        return list(cases)
    groups: Counter[str] = Counter()
    pictures: Counter[str] = Counter()
    left = dict(enumerate(cases))
    chosen = []
    for _ in range(limit):
        place = min(
            left, key=lambda i: (groups[group_of(left[i].kind)], pictures[left[i].picture], i)
        )
        case = left.pop(place)
        groups[group_of(case.kind)] += 1
        pictures[case.picture] += 1
        chosen.append(place)
    return [cases[i] for i in sorted(chosen)]


def cover(span: Span, shown: Shown) -> dict[str, float]:
    """`coverage.measures` of what a span keeps, with those of random tokens and of a lattice.

    sag: how much larger the mean distance is in the lower half than in the upper one; *_over: how
    much larger than at random.
    """
    kept = [i for i in span.kept if i in shown.places]
    out = coverage.measures(shown.squares, shown.at(kept), shown.by(kept), shown.grid)
    out["sag"] = out["lower"] - out["upper"]
    out["patches"] = float(len(kept))
    count = min(len(kept), len(shown.squares))
    for name, control in (("random", coverage.of_random), ("lattice", coverage.of_lattice)):
        even = control(count, shown.grid) if count else {}
        for what in ("mean", "far", "hole"):
            out[f"{what}_{name}"] = even.get(what, float("nan"))
    for what in ("mean", "hole"):
        out[f"{what}_over"] = out[what] - out[f"{what}_random"]
    return out


class Reader:
    """Makes rows of traces of one setting.

    Args:
        objects: what its pictures show, None where that is not known.
    """

    def __init__(self, setting: Setting, objects: Mapping[str, Objects] | None):
        self.setting, self.objects = setting, objects
        self.kind = default_aspect_ratio(setting.model.config)
        self.size = cache(self._size)

    def _size(self, picture: str) -> tuple[int, int]:
        if self.objects is not None and picture in self.objects:
            return self.objects[picture].size
        with Image.open(self.setting.pictures.find(picture)) as image:
            return image.size

    def scene(self, case: Case) -> str:
        """Names what a picture shows, so that one scene in two files is one cluster."""
        if self.objects is None or case.picture not in self.objects:
            return case.picture
        return f"{zlib.crc32(repr(self.objects[case.picture]).encode()):08x}"

    def shown(self, case: Case, trace: SampleTrace, truth: bool) -> Shown:
        """The picture's squares: those of the truth, or its finest patches."""
        grid = self.setting.geometry.grid
        squares = self.objects[case.picture].grid if truth and self.objects else None
        return shown_by(trace, grid, self.size(case.picture), self.kind, squares)

    def things(self, case: Case) -> list[tuple[int, ...]]:
        """Squares of each thing in a case's picture."""
        found = self.objects.get(case.picture) if self.objects else None
        return [one.patches for one in found.objects] if found else []

    def recall(self, case: Case, trace: SampleTrace) -> dict[str, dict[str, float]]:
        """By place, `region_recall.recall`."""
        shown = self.shown(case, trace, truth=True)
        need = wanted(case.region or (), case.named or (), self.things(case))
        return over_places(spans(trace), lambda span: recall(span, shown, need))

    def coverage(self, case: Case, trace: SampleTrace) -> dict[str, dict[str, float]]:
        """By place, `cover` and what is missed of the things."""
        fine, things = self.shown(case, trace, truth=False), self.things(case)
        truth = self.shown(case, trace, truth=True) if things else fine

        def both(span: Span) -> dict[str, float]:
            lost = missed(span, truth, things)
            lost["missed_over"] = lost["missed"] - lost["missed_chance"]
            return cover(span, fine) | lost

        return over_places(spans(trace), both)


def compute(
    setting: Setting,
    methods: Sequence[str] = METHODS,
    budgets: Sequence[int] = BUDGETS,
    limit: int | None = None,
    groups: Sequence[str] = ASKED,
    console: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Rows of both parts, "recall" and "coverage", as pandas tables; a part that cannot be had
    here is left out and says why to `console`.

    One row a question (coverage of a method that does not read it: a picture), method, budget and
    place of `kept_sets.PLACES`.

    Args:
        limit: at most so many questions, spread over pictures and groups of questions.
        groups: of questions, see `region_recall.GROUPS`; () for all.
    """
    import pandas as pd

    def truth() -> tuple[dict[str, Objects], list[Case]]:
        objects = objects_of(setting)
        return objects, known_cases(setting, objects, groups)

    known = parts({"recall": truth, "coverage": lambda: None}, console).get("recall")
    objects, cases = known or (None, setting.first_of_pictures)
    cases = spread(cases, limit)
    reader = Reader(setting, objects)
    rows: dict[str, list[dict[str, Any]]] = {"recall": [], "coverage": []}
    seen: dict[tuple[str, int, str], SampleTrace] = {}
    for method, budget, case, trace in traces(setting, cases, methods, budgets, console):
        about = {
            "benchmark": setting.benchmark[0].name if setting.benchmark else "",
            "scene": reader.scene(case), "key": case.sample.key, "kind": case.kind,
            "group": group_of(case.kind), "method": method, "budget": budget,
        }  # fmt: skip
        found = {"recall": reader.recall(case, trace)} if objects is not None else {}
        if seen.get((method, budget, case.picture)) is not trace:
            seen[method, budget, case.picture] = trace
            found["coverage"] = reader.coverage(case, trace)
        for part, places in found.items():
            rows[part] += [{**about, "place": place, **row} for place, row in places.items()]
    return {part: pd.DataFrame(own) for part, own in rows.items() if own}


def summaries(rows: Mapping[str, Any]) -> dict[str, Any]:
    """What `compute` found, in means with intervals over scenes: recall by group of questions and
    over all ("all"), coverage.
    """
    import pandas as pd

    out = {}
    keys = ["place", "method", "budget"]
    if "recall" in rows:
        table = pd.concat([rows["recall"].assign(group="all"), rows["recall"]])
        out["recall"] = summarise(table, ["group", *keys], RECALL, "scene", RECALL_ENDS)
    if "coverage" in rows:
        out["coverage"] = summarise(rows["coverage"], keys, COVERAGE, "scene", COVERAGE_ENDS)
    return out


def findings(tables: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of `summaries` under stable names: "unnamed/relation/last/visiondrop/64"."""
    ends = {"recall": RECALL, "coverage": COVERAGE}
    out: dict[str, float] = {}
    for part, table in tables.items():
        out |= findings_of(table.to_dict("records"), ends[part])
    return out


def show(tables: Mapping[str, Any]) -> None:
    """Print what the figures are about."""
    console = report.wide()
    tables = {name: t.assign(method=t["method"].map(name_of_method)) for name, t in tables.items()}
    if "recall" in tables:
        table = tables["recall"].query("group != 'all'")
        for (group, place), part in table.groupby(["group", "place"], sort=False):
            columns = ["method", "budget", "patches", "named", "unnamed", "unnamed_chance", "gap",
                       "gap_low", "gap_high", "complete", "n"]  # fmt: skip
            if part["gap"].isna().all():  # all is named, or nothing is
                part = part.assign(chance=part["named_chance"].fillna(part["unnamed_chance"]))
                columns = ["method", "budget", "patches", "named", "unnamed", "chance",
                           "complete", "n"]  # fmt: skip
            report.show(part[columns], f"Recall, {group} questions, {place}", console=console)
    for place, part in tables["coverage"].groupby("place", sort=False):
        names = {"mean_random": "random", "mean_lattice": "lattice", "hole_random": "random hole"}
        columns = ["method", "budget", "patches", "mean", *list(names)[:2], "hole", "hole_random",
                   "upper", "lower", "missed", "missed_chance"]  # fmt: skip
        table = part[columns].rename(columns=names)
        title = f"Coverage, in units of the picture's longer side, {place}"
        report.show(table, title, console=console)


def numbers(text: str) -> tuple[int, ...]:
    """Budgets as in "64,32", for argparse; the order is kept."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between") from None


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    import pandas as pd

    parser = argparse.ArgumentParser(
        prog="python -m analysis.spatial_misalignment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, "spatial_misalignment", 16, ["gqa", "vqav2"])
    parser.add_argument("--methods", default=",".join(METHODS), help="name or name+field=value")
    parser.add_argument("--tokens", type=numbers, default=BUDGETS, help="true means over layers")
    parser.add_argument("--groups", default=",".join(ASKED), help='of questions, or "all"')
    args = parser.parse_args(argv)
    groups = [] if args.groups == "all" else args.groups.split(",")
    if unknown := sorted(set(groups) - {*GROUPS, OTHERS}):
        raise EvalError(f"--groups {unknown[0]!r}: there are {', '.join([*GROUPS, OTHERS])}, all")
    asked = args.benchmark[:1] if args.images else args.benchmark
    if args.data and len(asked) > 1:
        raise EvalError(f"--data is the folder of one benchmark: give one --benchmark, not {asked}")
    methods = [name for name in args.methods.split(",") if name]
    rows: dict[str, list[Any]] = {}
    about: dict[str, Any] = {}
    loaded, kind = None, ""
    for benchmark in asked:
        usual = get_benchmark(benchmark).default_model
        if usual != kind and not args.model_path:
            loaded, kind = None, usual
        setting = setting_from(args, benchmark=benchmark, limit=None, loaded=loaded)
        loaded, setting.towers = setting.loaded, TowerCache(TOWER_BYTES)
        for part, table in compute(setting, methods, args.tokens, args.limit, groups).items():
            rows.setdefault(part, []).append(table)
        facts = {**setting.describe(), "limit": args.limit, "methods": methods}
        about[benchmark if not args.images else "images"] = {**facts, "tokens": list(args.tokens)}
    tables = summaries({part: pd.concat(found) for part, found in rows.items()})
    show(tables)
    figures = plot(tables, Path(args.out) / "spatial")
    named = {f"spatial_{part}": table for part, table in tables.items()}
    return finish(args, "spatial_misalignment", about, named, figures)


if __name__ == "__main__":
    sys.exit(run_main(main))
