"""Which patches each decoder layer still sees under a method: what coverage and recall are of.

A patch is *kept* while a token with its own id is there. A contextual token has the id of its
reference, so its reference counts as kept, though others were added to it. A patch is *represented*
while it is kept or was merged into a token that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.setting import Case, Setting
from llava.eval.errors import EvalError
from llava.eval.oracle import Oracle
from llava.eval.planning import check_name, make_method
from visiondrop import Reducer
from visiondrop.trace import SampleTrace

__all__ = ["PLACES", "Span", "at", "make", "over_places", "parse", "spans", "traces"]

PLACES = ("entry", "layers", "last")
"""Where a measure is taken: in what enters the LLM; the mean over all decoder layers, in which
methods of one budget see equally many tokens; in what the last layers see."""

Measure = Callable[["Span"], Mapping[str, float]]


@dataclass(frozen=True)
class Span:
    """What some decoder layers in a row see of a picture.

    Attributes:
        first: the first of these layers; layers: how many.
        kept, represented: token ids as in traces, rising; CLS and newlines may be among them.
    """

    first: int
    layers: int
    kept: tuple[int, ...]
    represented: tuple[int, ...]


def spans(sample: SampleTrace, picture: int = 0) -> list[Span]:
    """What the decoder's layers see of a picture, from the first layer to the last."""
    depth = len(sample.tokens_per_layer)
    stages = [stage for stage in sample.stages if stage.picture == picture]
    if not stages:
        everything = _untouched(sample, picture)
        return [Span(0, depth, everything, everything)]
    whole = tuple(sorted(map(int, stages[0].identity.tolist())))
    now, first, out = (whole, whole), 0, []
    for stage, (_, fate) in zip(stages, sample.fates(picture), strict=True):
        layer = 0 if stage.layer is None else stage.layer
        if layer > first:
            out.append(Span(first, layer - first, *now))
            first = layer
        kept = tuple(sorted(p for p, (what, _) in fate.items() if what == "kept"))
        now = kept, tuple(sorted(p for p, (what, _) in fate.items() if what != "dropped"))
    return [*out, Span(first, depth - first, *now)]


def _untouched(sample: SampleTrace, picture: int) -> tuple[int, ...]:
    """Ids of a picture that no stage looked at."""
    grid = sample.grids[picture] if picture < len(sample.grids) else None
    if grid is None:
        counts = sample.tokens_by_picture[picture] if sample.tokens_by_picture else None
        return tuple(range((counts or sample.tokens_per_layer)[0]))
    last = getattr(grid, "first_newline", None)
    if last is None:
        raise ValueError("a video's tokens have a time beside a place; take single pictures")
    return tuple(range(last))


def at(found: Sequence[Span], layer: int) -> Span:
    """What decoder layer `layer` sees."""
    return next(span for span in found if span.first <= layer < span.first + span.layers)


def over_places(found: Sequence[Span], measure: Measure) -> dict[str, dict[str, float]]:
    """A measure of token sets at each of `PLACES`; over layers each counts once, NaN where a layer
    has none.
    """
    values = [dict(measure(span)) for span in found]
    depth = sum(span.layers for span in found)
    weights = [span.layers / depth for span in found]
    mean = {
        name: float(sum(w * one[name] for w, one in zip(weights, values, strict=True)))
        for name in values[0]
    }
    return {"entry": values[0], "layers": mean, "last": values[-1]}


# ---------------------------------------------------------------------- methods by what is typed


def parse(text: str) -> tuple[str, dict[str, str]]:
    """Method and fields of "visiondrop+causal=expectation", as result folders name them.

    Raises `EvalError` where a field has no value.
    """
    name, *fields = text.split("+")
    out = {}
    for one in fields:
        key, equals, value = one.partition("=")
        if not equals or not key or not value:
            raise EvalError(
                f"method {text!r}: {one!r} sets nothing; write name+field=value, as in "
                "visiondrop+causal=expectation"
            )
        out[key] = value
    return name, out


def make(text: str, tokens: int, setting: Setting) -> Reducer:
    """A method at a true mean of `tokens` visual tokens.

    Raises `EvalError` where there is no such method, where the budget cannot be met here, or where
    an oracle has nothing to know.
    """
    name, fields = parse(text)
    if name != Oracle.name:
        return make_method(name, tokens, setting.geometry, fields)
    regions = {c.sample.key: c.region for c in setting.cases if c.region is not None}
    if len(regions) < len(setting.cases):
        raise EvalError("the oracle needs to know what a question asks for, which is not known")
    try:
        Oracle(tokens, regions).check(setting.geometry)
    except ValueError as error:
        raise EvalError(str(error)) from None
    return Oracle(tokens, regions)


def reads_question(method: Reducer) -> bool:
    """Whether what is kept may differ between two questions about one picture.

    Methods inside the LLM that look at visual tokens alone see states that no later text has
    touched: the mask is causal, and what comes before the picture is the same for all.
    """
    looks = method.reads_text or method.looks_back or method.uses_input
    return looks or method.reads_questions or isinstance(method, Oracle)


def traces(
    setting: Setting,
    cases: Sequence[Case],
    methods: Sequence[str],
    budgets: Sequence[int],
    refused: Callable[[str], None] = print,
) -> Iterator[tuple[str, int, Case, SampleTrace]]:
    """(method, budget, case, trace) of every case under every method at every budget.

    A method that does not read the question is shown each picture once, with its first question; a
    seeded one so draws once a picture. Methods that cannot meet a budget here are left out, with
    the reason to `refused`.

    Raises `EvalError` for a name that is no method, before any compute, and where nothing is left.
    """
    plan, reasons = [], []
    for name in methods:
        check_name(parse(name)[0])
        for tokens in budgets:
            try:
                plan.append((name, tokens, make(name, tokens, setting)))
            except EvalError as error:
                reasons.append(f"{name} at {tokens}: {error}")
                refused(f"left out: {reasons[-1]}")
    if not plan:
        raise EvalError("no method can run here: " + "; ".join(reasons))
    firsts = {case.picture: case for case in reversed(cases)}
    for name, tokens, method in plan:
        label = f"{name}, {tokens}"
        if reads_question(method):
            for look in setting.walk(method, cases, label=label):
                yield name, tokens, look.case, look.trace
            continue
        shown = list({case.picture: firsts[case.picture] for case in cases}.values())
        found = {look.case.picture: look.trace for look in setting.walk(method, shown, label=label)}
        for case in cases:
            yield name, tokens, case, found[case.picture]
