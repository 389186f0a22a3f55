"""VisionDrop-Div against its limits, a slow loop and what its definition promises."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from tests.visiondrop.models import PATCHES, generate, pixels, prompt, tiny
from visiondrop import VisionDrop
from visiondrop.functional.diversity import coverage_order
from visiondrop.methods.visiondrop_div import VisionDropDiv, centred_cosine, nearness
from visiondrop.views import DecoderView, EncoderView

BUDGETS: dict[str, Any] = {"encoder": (14, 4), "llm": {2: (10, 3), 4: (7, 2), 6: (4, 1)}}
GRID = (6, 6)


def encoder_view(seed: int, has_cls: bool = True) -> EncoderView:
    generator = torch.Generator().manual_seed(seed)
    tokens = PATCHES + int(has_cls)
    features = torch.randn(2, tokens, 10, generator=generator, dtype=torch.float64)
    query, key = torch.randn(2, 2, 3, tokens, 4, generator=generator, dtype=torch.float64)
    return EncoderView(features + 2, query, key, 0.5, has_cls, GRID, make_keys=lambda: ["a", "b"])


def decoder_view(seed: int, n: int = 17, before: int = 5) -> DecoderView:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, n, 10, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 4, n, 6, generator=generator, dtype=torch.float64)
    key = torch.randn(2, 2, before + n, 6, generator=generator, dtype=torch.float64)
    ones = torch.ones(2, n, dtype=torch.long)
    identity = torch.arange(n).expand(2, -1)
    return DecoderView(
        2, hidden, ones, lambda: (query, key), 0.4, lambda: ["a", "b"], identity, GRID, PATCHES
    )


def kept(method: VisionDrop, view: EncoderView | DecoderView) -> list[list[int]]:
    """Dominant tokens of each picture."""
    encoder = isinstance(view, EncoderView)
    out = method.encoder_stage(view) if encoder else method.llm_stage(view)  # type: ignore[arg-type]
    assert out is not None
    return [s[~c].tolist() for s, c in zip(out.source, out.contextual, strict=True)]


VIEWS = [
    pytest.param(encoder_view, id="encoder"),
    pytest.param(lambda seed: encoder_view(seed, has_cls=False), id="encoder-without-cls"),
    pytest.param(decoder_view, id="llm"),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("seed", range(5))
def test_without_coverage_the_choice_is_visiondrops(view: Any, seed: int) -> None:
    """Importance alone; and what is made of the others is VisionDrop's, too."""
    plain = VisionDrop(**BUDGETS, causal="expectation")
    ours = VisionDropDiv(**BUDGETS, coverage=0.0)
    assert kept(ours, view(seed)) == kept(plain, view(seed))
    assert kept(VisionDropDiv(**BUDGETS), view(seed)) != kept(plain, view(seed))
    stage = "llm_stage" if isinstance(view(seed), DecoderView) else "encoder_stage"
    a, b = (getattr(method, stage)(view(seed)) for method in (ours, plain))
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert x is y is None or torch.equal(x, y)


def test_without_coverage_a_run_is_visiondrops() -> None:
    model, rows = tiny(), [prompt(3, 6, 1), prompt(5, 9, 2)]
    out = []
    for method in (
        VisionDrop(**BUDGETS, causal="expectation"),
        VisionDropDiv(**BUDGETS, coverage=0.0),
    ):
        with method(model) as trace:
            answer = generate(model, rows, pixels(2))
        out.append((answer.sequences.tolist(), [s.to_dict() for s in trace.samples]))
    assert out[0] == out[1]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("seed", range(3))
def test_without_importance_the_choice_is_the_greedy_cover(view: Any, seed: int) -> None:
    shown = view(seed)
    first = int(isinstance(shown, EncoderView) and shown.has_cls)
    tokens = shown.features[:, first:] if isinstance(shown, EncoderView) else shown.hidden
    count = (14 if isinstance(shown, EncoderView) else 10) - first
    similarity = centred_cosine(tokens)
    similarity.diagonal(dim1=1, dim2=2).fill_(1.0)
    # Two tokens that stand for each other alone tie: the same sums, so that rounding is the same.
    ones = torch.ones_like(similarity[:, 0])
    cover = coverage_order(similarity, count, demand=ones).sort(1).values + first
    expected = [[*range(first), *row] for row in cover.tolist()]
    assert kept(VisionDropDiv(**BUDGETS, alpha=0.0, radius=0.0), shown) == expected


@pytest.mark.parametrize("seed", range(5))
def test_encoder_choice_equals_loops(seed: int) -> None:
    """The formula of the docstring, sum by sum, in plain floats."""
    view, alpha, radius = encoder_view(seed), 0.7, 1.5
    method = VisionDropDiv(**BUDGETS, alpha=alpha, radius=radius)
    got = kept(method, view)
    for g in range(2):
        x = view.features[g, 1:]
        x = (x - x.mean(0)).tolist()
        score = view.cls_attention[g].tolist()
        norm = [math.sqrt(sum(a * a for a in row)) for row in x]

        def k(i: int, j: int, x: Any = x, norm: Any = norm) -> float:
            cosine = sum(a * b for a, b in zip(x[i], x[j], strict=True)) / norm[i] / norm[j]
            (y, z), (v, w) = divmod(i, 6), divmod(j, 6)
            return cosine * math.exp(-((y - v) ** 2 + (z - w) ** 2) / (2 * radius**2))

        matrix = [[k(i, j) for j in range(PATCHES)] for i in range(PATCHES)]
        picks: list[int] = []
        while len(picks) < 13:
            covered = [max([0.0, *(matrix[i][s] for s in picks)]) for i in range(PATCHES)]
            gain = {
                j: sum(
                    score[i] ** alpha * max(0.0, matrix[i][j] - covered[i]) for i in range(PATCHES)
                )
                for j in range(PATCHES)
                if j not in picks
            }
            picks.append(max(gain, key=gain.__getitem__))
        assert got[g] == [0, *(p + 1 for p in sorted(picks))]


def test_a_copy_of_a_chosen_patch_waits() -> None:
    """The most attended patch and its twin: VisionDrop takes both, coverage only one."""
    view = encoder_view(0)
    order = view.cls_attention[0].argsort(descending=True)[:2] + 1
    a, b = order.tolist()
    view.features[:, b] = view.features[:, a]
    budget: Any = {"encoder": (3, 0)}
    assert {a, b} <= set(kept(VisionDrop(**budget), view)[0])
    assert len({a, b} & set(kept(VisionDropDiv(**budget, radius=0.0, alpha=1.0), view)[0])) == 1


def test_cls_alone_and_everything() -> None:
    view = encoder_view(1)
    assert kept(VisionDropDiv(encoder=(1, 0)), view) == [[0], [0]]
    assert kept(VisionDropDiv(encoder=(PATCHES + 1, 0)), view) == [[*range(PATCHES + 1)]] * 2


def test_nearness() -> None:
    near = nearness((2, 3), 2.0, torch.device("cpu"))
    assert near is not None and near.shape == (6, 6)
    for i, j in itertools.product(range(6), repeat=2):
        squared = (i // 3 - j // 3) ** 2 + (i % 3 - j % 3) ** 2
        assert near[i, j].item() == pytest.approx(math.exp(-squared / 8))
    assert nearness((2, 3), 0, torch.device("cpu")) is None


def test_the_question_takes_no_part() -> None:
    """Another question about the same picture: the same tokens at every stage."""
    model, method = tiny(), VisionDropDiv(**BUDGETS)
    fates = []
    for row in (prompt(3, 6, 1), [*prompt(3, 6, 1)[: 3 + PATCHES + 1], 40, 41, 42, 43]):
        with method(model) as trace:
            generate(model, [row], pixels(1))
        fates.append([stage.to_dict() for stage in trace.samples[0].stages])
    assert fates[0] == fates[1] and len(fates[0]) == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": -1.0}, "alpha=-1.0; give 0 or more"),
        ({"radius": math.nan}, "radius=nan; give 0 or more"),
        ({"coverage": 1.5}, "coverage=1.5; give 0 to 1"),
        ({"encoder": (60, 0)}, "60 dominant tokens asked for"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with (
        pytest.raises(ValueError, match=message),
        VisionDropDiv(**{**BUDGETS, **options})(tiny()),
    ):
        pass
