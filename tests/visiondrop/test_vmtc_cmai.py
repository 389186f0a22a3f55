"""The training-free variant of VMTC and CMAI against loops, and what its definition promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.visiondrop.models import PATCHES, generate, logits, pixels, prompt, tiny
from tests.visiondrop.slow_decoder import slow_decoder, slow_logits
from visiondrop import Full, Geometry, VisionDrop
from visiondrop.extensions.inhibition import focus_scores, least_focused
from visiondrop.functional.clustering import after_cls, cluster_and_merge, spherical_kmeans
from visiondrop.merging import keep_only
from visiondrop.methods.vmtc_cmai import VmtcCmai
from visiondrop.views import EncoderView

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
Vectors = list[torch.Tensor]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def slow_kmeans(points: Vectors, centres: int, iterations: int) -> list[int]:
    seeds = [c * max(1, len(points) // centres) for c in range(centres)]
    means = [points[s] for s in seeds]
    labels = [0] * len(points)
    for _ in range(iterations):
        for i, point in enumerate(points):
            near = [cosine(point, mean) for mean in means]
            labels[i] = seeds.index(i) if i in seeds else near.index(max(near))
        for c in range(centres):
            own = [p / p.norm() for p, label in zip(points, labels, strict=True) if label == c]
            means[c] = torch.stack(own).sum(0)
    return labels


def slow_vmtc(patches: Vectors, importance: list[float], primary: int, clusters: int) -> Vectors:
    """Primary patches in their order, then the clusters' weighted means."""
    order = sorted(range(len(patches)), key=lambda i: (-importance[i], i))
    kept = sorted(order[:primary])
    rest = sorted(order[primary:])
    labels = slow_kmeans([patches[i] for i in rest], clusters, 10)
    out = [patches[i] for i in kept]
    for c in range(clusters):
        own = [i for i, label in zip(rest, labels, strict=True) if label == c]
        total = sum(importance[i] for i in own)
        out.append(torch.stack([importance[i] / total * patches[i] for i in own]).sum(0))
    return out


@pytest.mark.parametrize("seed", range(5))
def test_clusters_equal_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(2, 23, 6, generator=generator, dtype=torch.float64)
    scores = torch.rand(2, 23, generator=generator, dtype=torch.float64)
    labels = spherical_kmeans(points, 4, 10)
    kept = scores.topk(5).indices.sort().values
    sizes = torch.ones(2, 23, dtype=torch.long)
    reduction = cluster_and_merge(points, sizes, scores, kept, 4, 10)
    for g in range(2):
        assert labels[g].tolist() == slow_kmeans(list(points[g]), 4, 10)
        expected = slow_vmtc(list(points[g]), scores[g].tolist(), 5, 4)
        torch.testing.assert_close(reduction.features[g], torch.stack(expected))
        for new in range(9):
            assert int((reduction.target[g] == new).sum()) == int(reduction.sizes[g, new])
            assert int(reduction.target[g, reduction.source[g, new]]) == new
    assert reduction.contextual.tolist() == [[False] * 5 + [True] * 4] * 2


def test_clusters_are_separated_points() -> None:
    """Well-separated directions come out as the clusters, and a merged token stays among them."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(3, 8).repeat(6, 1)
    noise = 0.05 * torch.randn(18, 8, generator=generator)
    lengths = torch.rand(18, 1, generator=generator) + 0.5
    points = ((directions + noise) * lengths)[torch.arange(18).view(6, 3).T.flatten()][None]
    labels = spherical_kmeans(points, 3, 10)[0]
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6


def slow_focus(attention: list[list[float]], text: list[int], i: int, j: int) -> float:
    return sum(attention[i][k] * attention[k][j] for k in text if k <= i)


@pytest.mark.parametrize("seed", range(5))
def test_focus_equals_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total, visual = 14, range(3, 9)
    text = list(range(9, total))
    full = torch.randn(total, total, generator=generator, dtype=torch.float64)
    full = full.masked_fill(~torch.ones(total, total).bool().tril(), -math.inf).softmax(-1)
    t = len(text)
    flags = torch.ones(1, t, dtype=torch.bool)
    focus = focus_scores(full[None, -t:], flags)
    candidates = torch.zeros(1, t, total, dtype=torch.bool)
    candidates[:, :, visual] = True
    hidden = least_focused(focus, candidates, 0.5)
    for row, i in enumerate(text):
        expected = {j: slow_focus(full.tolist(), text, i, j) for j in visual}
        for j in visual:
            assert float(focus[0, row, j]) == pytest.approx(expected[j])
        lowest = sorted(visual, key=lambda j: (expected[j], j))[: int(0.5 * len(visual))]
        assert hidden[0, row].nonzero().flatten().tolist() == sorted(lowest)


def test_focus_of_a_lone_text_token_is_its_own_attention() -> None:
    """Aggregation over one token changes no order; equal focus hides the earlier columns."""
    attention = torch.tensor([[[0.1, 0.4, 0.2, 0.3]]])
    candidates = torch.tensor([[[True, True, True, False]]])
    focus = focus_scores(attention, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(focus, attention * 0.3)
    assert least_focused(focus, candidates, 0.34).tolist() == [[[True, False, False, False]]]
    flat = torch.zeros(1, 1, 4)
    assert least_focused(flat, candidates, 0.7).tolist() == [[[True, True, False, False]]]


def run(model: Any, method: Any, row: list[int], image: torch.Tensor, **kw: Any) -> Any:
    with method(model):
        return generate(model, [row], image, **kw)


@torch.no_grad()
def loops(model: Any, method: VmtcCmai, row: list[int], image: torch.Tensor) -> torch.Tensor:
    """The whole method for one row, token by token: clustering, then attention with blind pairs."""
    tower = model.model.vision_tower
    features = tower(image[None], output_hidden_states=True).hidden_states[-2][0]
    attention = tower.encoder.layers[-2].self_attn
    hidden = tower(image[None], output_hidden_states=True).hidden_states[-3][0]
    normed = tower.encoder.layers[-2].layer_norm1(hidden)
    query, key = (p(normed).view(-1, 4, 8) for p in (attention.q_proj, attention.k_proj))
    importance = [0.0] * PATCHES
    for h in range(4):
        weights = ((key[:, h] @ query[0, h]) / math.sqrt(8)).softmax(0)
        importance = [a + float(w) / 4 for a, w in zip(importance, weights[1:], strict=True)]
    clusters = method.merged
    tokens = slow_vmtc(list(features[1:]), importance, method.tokens - clusters, clusters)
    visual = model.model.multi_modal_projector(torch.stack(tokens)[None])[0]
    words = model.get_input_embeddings()(torch.tensor(row))
    start = row.index(model.config.image_token_id)
    embeds = torch.cat([words[:start], visual, words[start + PATCHES :]])
    pictures = range(start, start + method.tokens)
    text = range(start + method.tokens, len(embeds))
    blind: set[tuple[int, int]] = set()

    def choose(layer: int, _states: Any, heads: Any) -> None:
        if layer not in method.focus_layers:
            return
        query, key = heads
        kv = len(key[0])
        mean = [[0.0] * len(embeds) for _ in embeds]
        for i in text:
            for h in range(4):
                scores = [query[i][h] @ key[j][h * kv // 4] for j in range(i + 1)]
                for j, w in enumerate((torch.stack(scores) / math.sqrt(8)).softmax(0)):
                    mean[i][j] += float(w) / 4
        blind.clear()
        for i in text:
            focus = {j: slow_focus(mean, list(text), i, j) for j in pictures}
            low = sorted(pictures, key=lambda j: (focus[j], j))[: int(method.inhibit * len(focus))]
            blind.update((i, j) for j in low)

    def sees(layer: int, head: int, i: int, j: int) -> bool:
        return j <= i and (i, j) not in blind

    return slow_logits(model, slow_decoder(model, embeds, sees=sees, before_layer=choose))


@pytest.mark.parametrize(
    "method",
    [VmtcCmai(12), VmtcCmai(10, clusters=4, inhibit=0.7, focus_layers=(1, 4))],
    ids=["once", "twice"],
)
def test_equals_loops(method: VmtcCmai) -> None:
    model = tiny(kv_heads=2)
    for seed in range(5):
        row, image = prompt(2 + seed % 2, 5, seed), pixels(1, seed)
        out = run(model, method, row, image, max_new_tokens=1, min_new_tokens=1)
        torch.testing.assert_close(out.logits[0][0], loops(model, method, row, image[0]), **CLOSE)


def test_without_inhibition_it_is_the_clustering_alone() -> None:
    """Also through the masks: a share that rounds to no token hides none."""
    model, row, image = tiny(), prompt(3, 6, 1), pixels(1)
    alone = run(model, VmtcCmai(12, inhibit=0), row, image)
    masked = run(model, VmtcCmai(12, inhibit=1 / 13), row, image)
    inhibited = run(model, VmtcCmai(12, inhibit=0.5), row, image)
    torch.testing.assert_close(logits(masked), logits(alone), **CLOSE)
    assert (logits(inhibited) - logits(alone)).abs().max() > 1e-2
    assert VmtcCmai(12, inhibit=0).extension() is None


def test_all_tokens_kept_and_none_inhibited_equals_unpruned() -> None:
    model, row, image = tiny(), prompt(3, 6, 1), pixels(1)
    out = run(model, VmtcCmai(PATCHES, clusters=0, inhibit=0), row, image)
    torch.testing.assert_close(logits(out), logits(run(model, Full(), row, image)), **CLOSE)


def test_everything_inhibited_cuts_the_text_off() -> None:
    """From the focus layer on no text token sees the picture: with layer 0 it does not matter."""
    model, row = tiny(), prompt(3, 6, 1)
    method = VmtcCmai(12, inhibit=1, focus_layers=(0,))
    one, other = (run(model, method, row, pixels(1, seed)) for seed in (1, 2))
    torch.testing.assert_close(logits(one), logits(other), **CLOSE)
    half = VmtcCmai(12, inhibit=0.5, focus_layers=(0,))
    one, other = (run(model, half, row, pixels(1, seed)) for seed in (1, 2))
    assert (logits(one) - logits(other)).abs().max() > 1e-2


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_legal_budget_is_met(data: st.DataObject) -> None:
    """As many tokens as asked for, every patch in one of them at most, none counted twice."""
    tokens = data.draw(st.integers(1, PATCHES))
    clusters = data.draw(st.integers(0, tokens))
    method = VmtcCmai.from_average(tokens, num_layers=8, num_patches=PATCHES, clusters=clusters)
    method.check(Geometry(8, PATCHES, True, (6, 6)))
    features = torch.randn(2, PATCHES + 1, 5, generator=torch.Generator().manual_seed(tokens))
    query = features[:, None]
    view = EncoderView(features, query, query, 1.0, True, (6, 6), lambda: ["", ""])
    reduction: Any = method.encoder_stage(view)
    assert reduction.features.shape == (2, tokens, 5)
    assert bool((reduction.target[:, 0] == -1).all()) and int(reduction.source.min()) >= 1
    for target, sizes in zip(reduction.target, reduction.sizes, strict=True):
        counts = torch.bincount(target[target >= 0], minlength=tokens)
        assert torch.equal(counts, sizes) and int(counts.min()) >= 1
        assert int(counts.sum()) == (PATCHES if clusters else tokens)


def test_after_cls_shifts_and_drops_cls() -> None:
    kept = keep_only(torch.zeros(1, 4, 2), torch.ones(1, 4), torch.tensor([[1, 3]]))
    assert after_cls(kept, False) is kept
    shifted = after_cls(kept, True)
    assert shifted.source.tolist() == [[2, 4]] and shifted.target.tolist() == [[-1, -1, 0, -1, 1]]


def test_with_a_stage_inside_the_llm() -> None:
    """The focus is computed anew where a stage has changed the tokens; cached = recomputed."""
    model, row, image = tiny(), prompt(3, 6, 1), pixels(1)
    method = VmtcCmai(16, focus_layers=(1,)) + VisionDrop(llm={3: (6, 2)})
    cached = run(model, method, row, image)
    again = run(model, method, row, image, use_cache=False)
    torch.testing.assert_close(logits(cached), logits(again), **CLOSE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 37}, "tokens=37"),
        ({"tokens": 8, "clusters": 9}, "clusters=9 of tokens=8"),
        ({"tokens": 8, "inhibit": 1.5}, "inhibit=1.5"),
        ({"tokens": 8, "focus_layers": (3, 2)}, r"focus_layers=\[3, 2\]"),
        ({"tokens": 8, "focus_layers": (8,)}, "0 to 7"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), VmtcCmai(**fields)(tiny()):
        pass
