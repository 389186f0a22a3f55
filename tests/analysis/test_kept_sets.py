"""What layers see, by traces made by hand and by what the tiny model really holds."""

from types import SimpleNamespace

import pytest
import torch

from analysis.kept_sets import PLACES, Span, at, over_places, parse, reads_question, spans
from llava.eval.errors import EvalError
from llava.eval.oracle import Oracle
from tests.visiondrop import models
from tests.visiondrop.models import LAYERS, PATCHES
from visiondrop import VisionDrop
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.methods import METHODS, build_method
from visiondrop.trace import SampleTrace, StageTrace


def stage(layer, identity, source=None, target=None, contextual=None):
    tensors = [None if t is None else torch.tensor(t) for t in (source, target, contextual)]
    place = "encoder" if layer is None else "llm"
    return StageTrace(place, layer, 0, torch.tensor(identity), *tensors)


def test_spans_of_a_trace_made_by_hand():
    stages = [
        # Of CLS and four patches: CLS and 2 stay, 0 and 3 are merged into 0, 1 is dropped.
        stage(None, [-1, 0, 1, 2, 3], [0, 3, 1], [0, 2, -1, 1, 2], [False, False, True]),
        # Before layer 2 only 2 stays.
        stage(2, [-1, 2, 0], [1], [-1, 0, -1], [False]),
    ]
    found = spans(SampleTrace(None, [3, 3, 1, 1, 1], [9] * 5, 1, stages))
    assert found == [Span(0, 2, (-1, 0, 2), (-1, 0, 2, 3)), Span(2, 3, (2,), (2,))]
    assert [at(found, layer).first for layer in range(5)] == [0, 0, 2, 2, 2]
    measured = over_places(found, lambda span: {"kept": float(len(span.kept))})
    assert list(measured) == list(PLACES)
    assert measured["entry"] == {"kept": 3} and measured["last"] == {"kept": 1}
    assert measured["layers"]["kept"] == pytest.approx((3 * 2 + 1 * 3) / 5)


def test_a_picture_that_nothing_was_done_to():
    assert spans(SampleTrace(None, [4] * 3, [9] * 3, 1)) == [Span(0, 3, *[(0, 1, 2, 3)] * 2)]
    grid = TileGrid(1, 2, (8, 4), 2)
    (found,) = spans(SampleTrace(None, [14] * 3, [19] * 3, 1, grids=[grid]))
    assert found.kept == tuple(range(12))
    skipped = SampleTrace(None, [4] * 3, [9] * 3, 1, [stage(2, [0, 1, 2, 3])])
    assert [s.kept for s in spans(skipped)] == [(0, 1, 2, 3)] * 2


@pytest.mark.parametrize(
    "method",
    [
        VisionDrop(encoder=(10, 4), llm={2: (8, 2), 5: (4, 1)}),
        build_method("random", None, args={"tokens": "9"}, model=models.tiny()),
        build_method("fastv", 16, model=models.tiny()),
    ],
)
def test_spans_hold_as_many_as_the_layers_of_a_model(method):
    model = models.tiny()
    with method(model, keys=["a"]) as trace:
        models.generate(model, [models.prompt(3, 4)], models.pixels(1))
    sample = trace.samples[0]
    found = spans(sample)
    assert sum(span.layers for span in found) == LAYERS
    for layer, tokens in enumerate(sample.tokens_per_layer):
        span = at(found, layer)
        assert len(span.kept) == tokens
        assert set(span.kept) <= set(span.represented) <= set(range(-1, PATCHES))


def test_methods_are_read():
    assert parse("visiondrop+causal=expectation") == ("visiondrop", {"causal": "expectation"})
    assert parse("random") == ("random", {})
    with pytest.raises(EvalError, match="name\\+field=value"):
        parse("visiondrop+causal")


def test_a_method_that_looks_at_the_text_is_shown_every_question():
    names = {"fastv", "pyramiddrop", "sparsevlm", "visiondrop", "visionzip", "divprune", "random"}
    asked = {name for name in names if reads_question(METHODS[name]())}
    assert asked == {"fastv", "pyramiddrop", "sparsevlm"}
    assert reads_question(Oracle(4, {}))


@pytest.mark.parametrize("name", ["visiondrop", "visionzip", "divprune", "uniform"])
def test_a_method_that_does_not_keeps_the_same_for_every_question(name):
    model, images = models.tiny(), models.pixels(1)
    method = build_method(name, 9, model=model)
    kept = []
    for seed, after in ((1, 4), (2, 11)):
        question = models.prompt(3, after, seed=seed)
        with method(model, keys=["a"]) as trace:
            # What stands before the picture is alike, as in one conversation template.
            models.generate(model, [models.prompt(3, 0, seed=9) + question[-after:]], images)
        kept.append(spans(trace.samples[0]))
    assert kept[0] == kept[1]


def test_traces_show_pictures_once_where_that_is_enough():
    from analysis.kept_sets import traces

    walked = []

    class Setting:
        geometry = SimpleNamespace(
            num_layers=16, num_patches=576, has_cls=True, lacks=set(), crops=False, frames=1
        )

        def walk(self, method, cases, label):
            walked.append((method.name, [case.sample.key for case in cases]))
            for case in cases:
                yield SimpleNamespace(case=case, trace=f"{method.name} {case.sample.key}")

    cases = [
        SimpleNamespace(picture=picture, sample=SimpleNamespace(key=key))
        for picture, key in [("p", "1"), ("q", "2"), ("p", "3")]
    ]
    said = []
    setting = Setting()
    setting.cases = cases
    found = list(traces(setting, cases, ["uniform", "fastv"], [64, 32], said.append))
    assert walked == [
        ("uniform", ["1", "2"]), ("uniform", ["1", "2"]), ("fastv", ["1", "2", "3"])
    ]  # fmt: skip
    assert [(m, t, c.sample.key, trace) for m, t, c, trace in found[:3]] == [
        ("uniform", 64, "1", "uniform 1"),
        ("uniform", 64, "2", "uniform 2"),
        ("uniform", 64, "3", "uniform 1"),
    ]
    assert len(said) == 1 and "fastv at 32" in said[0] and "not reachable" in said[0]
    with pytest.raises(EvalError, match="unknown method 'nothing'"):
        list(traces(setting, cases, ["nothing"], [64]))
