"""How much of the visual tokens' information is left in what is kept, layer by layer: where could
one drop more?

    python -m analysis.redundancy                                   # bundled TextVQA pictures
    python -m analysis.redundancy --images FOLDER --layers 0,8,16   # any pictures

The states are those of the unpruned model, as each decoder layer reads them (over their root mean
square). A kept set is what a method keeps up to that layer in a run of its own, or the best tokens
by a score at that layer; a contextual token stands for its reference's state. A linear
span is what some layer could undo at best, not what this model does undo, and what is redundant
among visual states may still be needed where it stands: the numbers bound, they do not promise.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis import report
from analysis.cli import add_flags, finish, layer_list, setting_from
from analysis.coverage import expected_hits
from analysis.kept_sets import Span, at, spans, traces
from analysis.probe import Probe
from analysis.redundancy_plots import name_of_set, plot
from analysis.scores import LLM_SCORES
from analysis.setting import Setting
from analysis.state_redundancy import (
    as_read,
    centred,
    cosine_error,
    effective,
    gram_of,
    near,
    neighbours,
    overlap,
    span_error,
    tokens_needed,
    variances,
)
from analysis.summaries import findings_of, summarise
from llava.eval.errors import EvalError, run_main
from visiondrop.views import DecoderView

__all__ = ["METHODS", "SCORES", "compute", "conclusion", "findings", "plot", "summaries"]

METHODS = ("visiondrop", "visiondrop+causal=expectation", "divprune", "random", "uniform")
SCORES = ("visual", "visual_corrected", "last_text")
SHARE = 0.9
NEIGHBOURS = 10

RANK = (
    "tokens", "participation", "entropy", "dims_90", "dims_99", "needed", "needed_random",
    "overlap_first", "overlap_before", "overlap_chance",
)  # fmt: skip
SETS = (
    "kept", "error", "error_random", "left", "left_random", "cosine", "cosine_random", "near",
    "near_chance", "error_over",
)  # fmt: skip


def drawn(key: str, layer: int, total: int) -> np.ndarray:
    """[total], a permutation seeded by sample and layer."""
    digest = hashlib.sha256(f"redundancy/{key}/{layer}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(total)


def rank_row(
    states: Tensor, gram: Tensor, order: Tensor, found: Tensor, first: Tensor, before: Tensor
) -> dict[str, float]:
    """What one layer's centred states [n, D] are by themselves: `effective`, tokens needed for
    `SHARE` of the variance, chosen well and in a random order, and overlap of nearest neighbours
    with those of the first layer and of the layer looked at before.
    """
    n, k = found.shape
    return {
        "tokens": float(n),
        **effective(variances(states, gram)),
        "needed": float(tokens_needed(gram, SHARE)),
        "needed_random": float(tokens_needed(gram, SHARE, order)),
        "overlap_first": overlap(found, first),
        "overlap_before": overlap(found, before),
        "overlap_chance": k / (n - 1),
    }


def set_row(gram: Tensor, found: Tensor, kept: Tensor, even: Tensor) -> dict[str, float]:
    """What is left of a layer's states in a kept set [k], and in `even`, as many random ones."""
    n, k = found.shape
    error, left = span_error(gram, kept)
    error_random, left_random = span_error(gram, even)
    return {
        "kept": float(len(kept)),
        "error": error,
        "error_random": error_random,
        "error_over": error - error_random,
        "left": left,
        "left_random": left_random,
        "cosine": cosine_error(gram, kept),
        "cosine_random": cosine_error(gram, even),
        "near": near(found, kept),
        "near_chance": expected_hits(n - 1, min(len(kept), n - 1), k) if len(kept) < n else 1.0,
    }


class LayerReader:
    """Reads a `DecoderView`: turns each picture's states into numbers, and keeps no states.

    Args:
        kept: method -> sample key -> what the layers see under it.
        end: sample key -> first token id that is no patch (a newline's).
        scores: names of `LLM_SCORES` whose best `tokens` are sets, too.
        k: nearest neighbours.
    """

    def __init__(
        self,
        kept: Mapping[str, Mapping[str, Sequence[Span]]],
        end: Mapping[str, int],
        scores: Sequence[str],
        tokens: int,
        k: int = NEIGHBOURS,
    ):
        self.kept, self.end, self.scores, self.tokens, self.k = kept, end, scores, tokens, k
        self.rows: dict[str, list[dict[str, Any]]] = {"rank": [], "sets": []}
        self._first: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def __call__(self, view: DecoderView) -> dict[str, Tensor]:
        """Read every picture of a group; there is nothing to hand on."""
        scores = {name: LLM_SCORES[name](view) for name in self.scores}
        for g, key in enumerate(view.keys):
            patches = view.identity[g] < self.end[key]
            own = {name: value[g][patches] for name, value in scores.items()}
            self._read(key, view.layer, view.hidden[g][patches], view.identity[g][patches], own)
        return {}

    def _read(
        self, key: str, layer: int, hidden: Tensor, identity: Tensor, scores: dict[str, Tensor]
    ) -> None:
        states = centred(as_read(hidden))
        gram = gram_of(states)
        n = len(states)
        order = torch.from_numpy(drawn(key, layer, n)).to(states.device)
        found = neighbours(gram, min(self.k, n - 1))
        first = self._first.setdefault(key, found)
        about = {"key": key, "layer": layer}
        rank = rank_row(states, gram, order, found, first, self._before.get(key, found))
        self._before[key] = found
        self.rows["rank"].append({**about, **rank})
        sets = {name: self._places(by_key[key], layer, identity) for name, by_key in
                self.kept.items()}  # fmt: skip
        for name, score in scores.items():
            sets[f"top {name}"] = score.topk(min(self.tokens, n)).indices.sort().values
        for name, kept in sets.items():
            row = set_row(gram, found, kept, order[: len(kept)])
            self.rows["sets"].append({**about, "set": name, **row})

    @staticmethod
    def _places(found: Sequence[Span], layer: int, identity: Tensor) -> Tensor:
        """Where the tokens that a layer sees stand among all."""
        ids = torch.tensor(at(found, layer).kept, device=identity.device)
        return torch.isin(identity, ids).nonzero()[:, 0]

    def forget(self) -> None:
        """Let go of the neighbours of pictures that are done."""
        self._first.clear()
        self._before.clear()


def compute(
    setting: Setting,
    methods: Sequence[str] = METHODS,
    scores: Sequence[str] = SCORES,
    tokens: int = 64,
    layers: Sequence[int] | None = None,
    limit: int | None = None,
    console: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Rows of pictures and layers: "rank" of all states, "sets" with what is left in kept ones.

    Args:
        methods: whose kept sets are looked at, as `kept_sets.parse` reads them.
        scores: names of `LLM_SCORES`; the best `tokens` by each at a layer are a set there.
        tokens: the methods' true mean over layers.
        layers: before which decoder layers; all by default.
        limit: at most so many pictures, each with its first question.

    Raises `EvalError` for a score or method that is none, before any compute.
    """
    import pandas as pd

    if unknown := sorted(set(scores) - set(LLM_SCORES)):
        raise EvalError(f"no score {unknown[0]!r}; there are: {', '.join(LLM_SCORES)}")
    if not 1 <= tokens <= setting.geometry.num_patches:
        raise EvalError(f"tokens={tokens}: give 1 to {setting.geometry.num_patches}")
    cases = setting.first_of_pictures[:limit]
    kept: dict[str, dict[str, list[Span]]] = {}
    end: dict[str, int] = {}
    for method, _, case, trace in traces(setting, cases, methods, [tokens], console):
        kept.setdefault(method, {})[case.sample.key] = spans(trace)
        grid = trace.grids[0] if trace.grids else None
        end[case.sample.key] = getattr(grid, "first_newline", sys.maxsize)
    reader = LayerReader(kept, end, scores, tokens)
    probe = Probe(tuple(range(setting.layers) if layers is None else layers), reader)
    try:
        probe.check(setting.geometry)
    except ValueError as error:
        raise EvalError(str(error)) from None
    pictures = {}
    for i, look in enumerate(setting.walk(probe, cases, label="states"), 1):
        pictures[look.case.sample.key] = look.case.picture
        if i % setting.batch_size == 0:
            reader.forget()
    return {
        part: pd.DataFrame(own).assign(picture=lambda t: t["key"].map(pictures))
        for part, own in reader.rows.items()
    }


def summaries(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Means over pictures with intervals: "rank" by layer, "sets" by set and layer."""
    return {
        "rank": summarise(rows["rank"], ["layer"], RANK, "picture", RANK[1:9]),
        "sets": summarise(
            rows["sets"].sort_values("layer", kind="stable"), ["set", "layer"], SETS, "picture",
            ("error", "error_over", "left", "cosine", "near"),
        ),
    }  # fmt: skip


def conclusion(tables: Mapping[str, Any], method: str = "visiondrop") -> list[str]:
    """Where one could drop more, in sentences made of the numbers."""
    rank = tables["rank"].set_index("layer")
    most, least = rank["dims_90"].idxmax(), rank["dims_90"].idxmin()
    share = f"{100 * SHARE:.0f} % of the variance"
    out = [
        f"{share} of the {rank['tokens'].mean():.0f} visual states lies in "
        f"{rank['dims_90'][most]:.1f} dimensions before layer {most}, where they are most, and in "
        f"{rank['dims_90'][least]:.1f} before layer {least}, where they are fewest; the span of "
        f"{rank['needed'][most]:.1f} and {rank['needed'][least]:.1f} well chosen tokens holds it, "
        f"or of {rank['needed_random'][most]:.1f} and {rank['needed_random'][least]:.1f} random "
        "ones.",
    ]
    own = tables["sets"].query("set == @method").set_index("layer")
    if len(own):
        both = own.join(rank[["needed"]])
        times = both["kept"] / both["needed"]
        loose, tight = times.idxmax(), times.idxmin()
        out.append(
            f"{method} sees {times[loose]:.1f} times the tokens that would do for {share}, well "
            f"chosen, before layer {loose} ({both['kept'][loose]:.1f} for "
            f"{both['needed'][loose]:.1f}) and {times[tight]:.1f} times before layer {tight}: by "
            f"this measure one could drop most more before layers "
            f"{runs([int(i) for i in times.index[times > times.median()]])}."
        )
        worst = own["error_over"].idxmax()
        out.append(
            f"Of the dropped states' variance {method} loses {100 * own['error'].min():.1f} to "
            f"{100 * own['error'].max():.1f} %; against as many random tokens it is worst before "
            f"layer {worst}: {100 * own['error'][worst]:.1f} % lost, "
            f"{100 * own['error_random'][worst]:.1f} % at random."
        )
        far = (own["cosine"] - own["cosine_random"]).idxmax()
        out.append(
            f"A dropped state is at a distance (1 - cosine) of {own['cosine'][far]:.2f} from the "
            f"nearest that {method} keeps before layer {far}, and of "
            f"{own['cosine_random'][far]:.2f} from the nearest of as many random ones."
        )
    return out


def runs(layers: Sequence[int]) -> str:
    """Layers as in "0-3, 8"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][-1] == layer - 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def findings(tables: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of `summaries` under stable names: "dims_90/8", "error/visiondrop/8"."""
    out: dict[str, float] = {}
    for part, names in (("rank", RANK), ("sets", SETS)):
        out |= findings_of(tables[part].to_dict("records"), names, ("layer",))
    return out


def show(tables: Mapping[str, Any], tokens: int) -> None:
    """Print ranks of every layer, kept sets of every fourth."""
    console = report.wide()
    names = {
        "participation": "particip.", "needed": "best tokens", "needed_random": "random tokens",
        "overlap_first": "k-NN first", "overlap_before": "k-NN before",
    }  # fmt: skip
    columns = ["layer", "participation", "entropy", "dims_90", "dims_99", *list(names)[1:]]
    table = tables["rank"][columns].rename(columns=names)
    report.show(table, "All visual states, by layer", 2, console)
    layers = tables["rank"]["layer"].tolist()
    some = layers[:: max(1, len(layers) // 4)]
    part = tables["sets"][tables["sets"]["layer"].isin(some)]
    part = part.assign(set=part["set"].map(name_of_set))
    columns = ["set", "layer", "kept", "error", "error_random", "error_over_low",
               "error_over_high", "cosine", "cosine_random", "near", "near_chance"]  # fmt: skip
    title = f"What is left in kept states, {tokens} tokens"
    report.show(part[columns], title, console=console)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.redundancy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, "redundancy", 24)
    parser.add_argument("--methods", default=",".join(METHODS), help="name or name+field=value")
    parser.add_argument("--scores", default=",".join(SCORES), help=f"of {', '.join(LLM_SCORES)}")
    parser.add_argument("--tokens", type=int, default=64, help="true mean over layers")
    parser.add_argument("--layers", type=layer_list, help="as in 0,8,16 (all)")
    args = parser.parse_args(argv)
    setting = setting_from(args, limit=None)
    methods, scores = ([x for x in t.split(",") if x] for t in (args.methods, args.scores))
    rows = compute(setting, methods, scores, args.tokens, args.layers, args.limit)
    tables = summaries(rows)
    show(tables, args.tokens)
    said = conclusion(tables)
    print("\n".join(said))
    figures = plot(tables, Path(args.out) / "redundancy")
    about = {**setting.describe(), "limit": args.limit, "tokens": args.tokens,
             "methods": methods, "scores": scores, "conclusion": said}  # fmt: skip
    about["pictures"] = int(rows["rank"]["picture"].nunique())
    named = {f"redundancy_{part}": table for part, table in tables.items()}
    return finish(args, "redundancy", about, named, figures)


if __name__ == "__main__":
    sys.exit(run_main(main))
