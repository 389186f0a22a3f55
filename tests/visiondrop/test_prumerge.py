"""PruMerge, PruMerge+ and VisPruner beyond the golden figures: budgets, options, odd settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.visiondrop.models import LAYERS, PATCHES, batch, pixels, prompt, tiny
from visiondrop.adapters import geometry_of
from visiondrop.merging import Reduction
from visiondrop.methods.prumerge import PruMerge
from visiondrop.methods.prumerge_plus import PruMergePlus
from visiondrop.methods.vispruner import VisPruner
from visiondrop.scoring import outlier_shares
from visiondrop.views import EncoderView

HEADS, SIZE = 3, 4
WIDTH = HEADS * SIZE


def random_view(seed: int, pictures: int = 2, n: int = PATCHES) -> EncoderView:
    """A tower's output in float64, whose CLS attention has outliers."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    heads = (pictures, HEADS, n + 1, SIZE)
    query, key = 2 * draw(*heads), 2 * draw(*heads)
    return EncoderView(
        draw(pictures, n + 1, 8),
        draw(*heads),
        draw(*heads),
        SIZE**-0.5,
        True,
        (6, 6),
        make_keys=lambda: [""] * pictures,
        make_following=lambda: (query, key),
    )


def fold_by_loops(
    features: Tensor, scores: list[float], keys: Tensor, kept: list[int], rest: list[int], **options
) -> Tensor:
    """One picture's tokens from the definition; `kept` may name a patch twice."""
    unit = keys / keys.norm(dim=1, keepdim=True)
    out = []
    for place, i in enumerate(kept):
        pool = list(rest)
        if options["candidates"] == "all":
            pool += kept[:place] + kept[place + 1 :]
        pool.sort(key=lambda j: -float(unit[i] @ unit[j]))
        out.append(features[i] + sum(scores[j] * features[j] for j in pool[: options["count"]]))
    out.append(sum((scores[j] * features[j] for j in rest), torch.zeros_like(features[0])))
    return torch.stack(out)


def kept_by_loops(scores: list[float], method: PruMerge) -> list[int]:
    """The patches that one picture keeps, in their order."""
    n = len(scores)
    ranked = sorted(range(n), key=lambda j: -scores[j])
    if method.tokens is not None:
        count = method.tokens - 1
        if not isinstance(method, PruMergePlus):
            return ranked[:count]
        best = ranked[: round(count / 4)]
        others, spaced = sorted(set(range(n)) - set(best)), count - len(best)
        return best + [others[math.floor((i + 0.5) * len(others) / spaced)] for i in range(spaced)]
    ratio = method.ratio
    if ratio is None:
        low, high = np.percentile(scores, [25, 75])
        ratio = sum(s > high + 1.5 * (high - low) for s in scores) / n
    best = ranked[: int(n * ratio)]
    if not isinstance(method, PruMergePlus):
        return best
    step = int(1 / ratio)
    if method.adaptive:
        return best + [j for j in range(0, n - 1, int(step / 3)) if j not in best]
    sampled = list(range(int(step / 2), n - 1, step))
    return best + [j for j in sampled if method.duplicates or j not in best]


SETTINGS: list[PruMerge] = [
    PruMerge(neighbours=5),
    PruMerge(ratio=0.3, neighbours=40),
    PruMerge(tokens=9, neighbours=4, candidates="pruned"),
    PruMergePlus(neighbours=6),
    PruMergePlus(ratio=0.12, candidates="pruned", neighbours=3),
    PruMergePlus(tokens=14, neighbours=4),
    PruMergePlus(tokens=2),
    PruMergePlus(adaptive=False, neighbours=4),
    PruMergePlus(adaptive=False, ratio=0.26, neighbours=7),
    PruMergePlus(adaptive=False, ratio=0.26, duplicates=False, neighbours=7),
]


@pytest.mark.parametrize("method", SETTINGS, ids=lambda m: repr(m).replace("positions", "")[:70])
def test_equals_loops(method: PruMerge) -> None:
    """Five random inputs of two pictures each."""
    repeated = 0
    for seed in range(5):
        view = random_view(seed)
        out = method.encoder_stage(view)
        query, key = (x.transpose(1, 2).reshape(2, -1, WIDTH) for x in view.following)
        for g in range(2):
            weights = torch.exp(query[g, 0] @ key[g].T / WIDTH**0.5)
            scores = (weights / weights.sum())[1:].tolist()
            kept = kept_by_loops(scores, method)
            free = sorted(set(range(PATCHES)) - set(kept))
            twice = len(kept) - len(set(kept))
            rest = free[twice:]
            repeated += twice
            expected = fold_by_loops(
                view.features[g, 1:],
                scores,
                key[g, 1:],
                kept,
                rest,
                count=method.neighbours,
                candidates=method.candidates,
            )
            one, at = (out, g) if isinstance(out, Reduction) else (out[g], 0)
            torch.testing.assert_close(one.features[at], expected)
            assert (one.source[at] - 1).tolist() == [*kept, rest[0]]
            assert one.contextual[at].tolist() == [False] * len(kept) + [True]
            assert one.sizes[at].tolist() == [1] * len(kept) + [len(rest)]
            fate = {j: kept.index(j) for j in kept} | {j: len(kept) for j in rest}
            assert one.target[at].tolist() == [-1] + [fate.get(j, -1) for j in range(PATCHES)]
    if isinstance(method, PruMergePlus) and not method.adaptive:
        assert bool(repeated) == method.duplicates


def test_unlike_counts_come_one_by_one() -> None:
    view = random_view(0, pictures=4)
    out = PruMerge().encoder_stage(view)
    assert isinstance(out, list) and len({r.features.shape[1] for r in out if r is not None}) > 1


def test_no_outliers_and_everything_kept() -> None:
    """Even attention leaves only the last token (and samples); all patches leave it empty."""
    view = random_view(1)
    query, key = view.following
    view.make_following = lambda: (query * 0, key)
    del view.__dict__["following"]
    (plain,) = {tuple(r.shape) for r in (PruMerge().encoder_stage(view).features,)}  # type: ignore[union-attr]
    assert plain[1] == 1
    even = PruMergePlus().encoder_stage(view)
    assert isinstance(even, Reduction) and (even.source[0] - 1).tolist() == [0, 12, 24, 1]
    for method in (PruMerge(ratio=1.0), PruMergePlus(adaptive=False, ratio=1.0, duplicates=False)):
        out = method.encoder_stage(random_view(2))
        assert isinstance(out, Reduction) and out.features.shape[1] == PATCHES + 1
        assert (out.features[:, -1] == 0).all() and (out.sizes > 0).all()


@pytest.mark.parametrize("cls", [PruMerge, PruMergePlus, VisPruner])
def test_every_budget_is_met(cls: Any) -> None:
    model = tiny()
    geometry = geometry_of(model)
    for tokens in range(1, PATCHES + 1):
        method = cls.from_average(tokens, num_layers=LAYERS, num_patches=PATCHES)
        method.check(geometry)
        with method(model) as trace, torch.no_grad():
            model(**batch([prompt(2, 3)]), pixel_values=pixels(1), logits_to_keep=1)
        assert trace.samples[0].tokens_per_layer == method.ledger(LAYERS, PATCHES)
        assert method.ledger(LAYERS, PATCHES) == [tokens] * LAYERS
        kept = trace.samples[0].stages[0].kept
        assert len(set(kept)) == len(kept) == tokens - (cls is not VisPruner)


@pytest.mark.parametrize("important", [0, 0.1, 0.5, 0.77, 1])
def test_vispruner_takes_any_share(important: float) -> None:
    """Odd numbers of important tokens too, where the released code stops with an error."""
    view = random_view(3)
    order = view.cls_attention.argsort(dim=1, descending=True)
    for tokens in (1, 7, 10, 35, PATCHES):
        out = VisPruner(tokens, important_ratio=important).encoder_stage(view)
        assert isinstance(out, Reduction)
        for g in range(2):
            kept = (out.source[g] - 1).tolist()
            assert kept == sorted(set(kept)) and len(kept) == tokens
            assert set(order[g, : int(tokens * important)].tolist()) <= set(kept)


@pytest.mark.parametrize("method", [PruMerge(), PruMergePlus(), PruMergePlus(ratio=0.1)])
def test_ledger_of_adaptive_counts_is_the_most(method: PruMerge) -> None:
    model = tiny()
    with method(model) as trace, torch.no_grad():
        model(**batch([prompt(2, 3)] * 6), pixel_values=pixels(6), logits_to_keep=1)
    most = method.ledger(LAYERS, PATCHES)[0]
    assert max(s.tokens_per_layer[0] for s in trace.samples) <= most <= PATCHES + 1


@pytest.mark.parametrize("n", range(2, 60))
def test_no_more_outliers_than_the_ledger_says(n: int) -> None:
    """However many scores stand out, no more count as outliers; for most n as many can."""
    most, found = PruMerge().ledger(1, n)[0] - 1, []
    for count in range(n + 1):
        scores = torch.tensor([[0.0] * (n - count) + [1.0] * count], dtype=torch.float64)
        scores += torch.linspace(0, 1e-3, n, dtype=torch.float64)
        found.append(round(outlier_shares(scores)[0] * n))
    assert max(found) <= most
    if n % 4 in (0, 1) and n > 4:
        assert max(found) == most


@pytest.mark.parametrize(
    "method, message",
    [
        (PruMerge(ratio=0.1, tokens=9), "both given; give one of them"),
        (PruMerge(tokens=37), "tokens=37 asked for where a picture has 36"),
        (PruMerge(tokens=9.5), "tokens=9.5 asked for .* give 1 to 36"),  # type: ignore[arg-type]
        (PruMerge(ratio=1.2), "share between 0 and 1"),
        (PruMergePlus(ratio=0.4), "share between 0 and 0.333"),
        (PruMerge(neighbours=-1), "neighbours=-1; give 0 or more"),
        (VisPruner(9, important_ratio=1.5), "important_ratio=1.5 is a share"),
        (VisPruner(9, step=0), "step=0; a round drops at least 1"),
        (VisPruner(37), "tokens=37 asked for where a picture has 36"),
    ],
)
def test_refusals(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), method(tiny()):
        pass


@pytest.mark.parametrize("method", [PruMerge(), PruMergePlus(), VisPruner()])
def test_no_cls_is_said_before_compute(method: Any) -> None:
    with (
        pytest.raises(ValueError, match=r"needs the attention of a CLS token .* work here: .*tome"),
        method(tiny("siglip", "qwen2")),
    ):
        pass
