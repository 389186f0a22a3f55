"""VFlowOpt against a slow loop of its definition, and what must hold of its parts."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.visiondrop.models import LAYERS, generate, logits, pixels, prompt, tiny
from visiondrop.adapters import geometry_of
from visiondrop.decoder_views import DecoderView
from visiondrop.functional.patches import CLIP_MEAN, CLIP_STD, cells
from visiondrop.functional.ratios import RELEASED, three_counts
from visiondrop.merging import keep_only
from visiondrop.methods import build_method
from visiondrop.methods.vflowopt import VFlowOpt
from visiondrop.stages import score_after
from visiondrop.views import EncoderView, ProjectedView

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ROWS, COLUMNS = GRID = (4, 6)


def rows_of(tensor: torch.Tensor) -> list:
    return tensor.tolist()


# ------------------------------------------------------------------ a loop for each part


def loop_attention(query: torch.Tensor, key: torch.Tensor, scale: float, t: float) -> list[float]:
    """One picture, [H, T, d]: attention maps as nested lists, then plain means."""
    heads, total, _ = query.shape
    mean = [[0.0] * total for _ in range(total)]
    for h in range(heads):
        for i in range(total):
            logits = [scale * float(query[h, i] @ key[h, j]) for j in range(total)]
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            for j in range(total):
                mean[i][j] += weights[j] / sum(weights) / heads
    received = [sum(mean[i][j] for i in range(total)) / total for j in range(total)]
    average = sum(received) / total
    judges = [j for j in range(total) if received[j] > t * average]
    if not judges:
        judges = [received.index(max(received))]
    return [sum(mean[i][j] for i in judges) / len(judges) for j in range(total)]


def loop_entropy(picture: torch.Tensor, side: int) -> list[float]:
    """One picture [3, h, w], normalised as CLIP's."""
    out = []
    for row in range(picture.shape[1] // side):
        for column in range(picture.shape[2] // side):
            grey = Counter()
            for y in range(row * side, row * side + side):
                for x in range(column * side, column * side + side):
                    rgb = [
                        min(255, max(0, round((float(picture[c, y, x]) * s + m) * 255)))
                        for c, (m, s) in enumerate(zip(CLIP_MEAN, CLIP_STD, strict=True))
                    ]
                    grey[round(sum(rgb) / 3)] += 1
            shares = [n / side**2 for n in grey.values()]
            out.append(-sum(p * math.log2(p) for p in shares))
    return out


def loop_recycle(
    features: list[list[float]],
    sizes: list[int],
    importance: list[float],
    cell: list[int],
    tokens: int,
) -> tuple[list[list[float]], list[int], list[int], list[int], list[bool]]:
    """One picture: drop one token after the other until `tokens` are left."""
    order = sorted(range(len(importance)), key=lambda i: (importance[i], -i))
    dropped: list[int] = []
    while len(importance) - len(dropped) + len({cell[i] for i in dropped}) > tokens or (
        not dropped and tokens < len(importance)
    ):
        dropped.append(order[len(dropped)])
    groups: dict[int, list[int]] = {}
    for i in dropped:
        groups.setdefault(cell[i], []).append(i)
    anchors = {group[-1]: group for group in groups.values()}  # rising importance
    source = [i for i in range(len(importance)) if i not in dropped or i in anchors]
    out, out_sizes, contextual, target = [], [], [], [-1] * len(importance)
    for slot, i in enumerate(source):
        group = anchors.get(i, [i])
        weights = [max(0.0, importance[j]) for j in group]
        if sum(weights) == 0:
            weights = [1.0] * len(group)
        out.append(
            [
                sum(w * features[j][d] for w, j in zip(weights, group, strict=True)) / sum(weights)
                for d in range(len(features[0]))
            ]
        )
        out_sizes.append(sum(sizes[j] for j in group))
        contextual.append(len(group) > 1)
        for j in group:
            target[j] = slot
    return out, source, target, out_sizes, contextual


def loop_cell(patch: int, columns: int, side: float) -> int:
    across = math.floor((columns - 1) / side) + 1
    return math.floor(patch // columns / side) * across + math.floor(patch % columns / side)


def views(seed: int, pictures: int = 2) -> tuple[ProjectedView, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    patches = ROWS * COLUMNS
    query, key = torch.randn(2, pictures, 3, patches + 1, 5, generator=draw) * 1.5
    images = torch.randn(pictures, 3, ROWS * 4, COLUMNS * 4, generator=draw)
    tower = EncoderView(
        torch.randn(pictures, patches + 1, 7, generator=draw),
        query,
        key,
        5**-0.5,
        True,
        GRID,
        make_keys=list,
        pixels=images,
    )
    return ProjectedView(torch.randn(pictures, patches, 8, generator=draw), tower), images


@pytest.mark.parametrize("seed", range(5))
def test_before_the_llm_equals_a_loop(seed: int) -> None:
    view, images = views(seed)
    method = VFlowOpt((0.45, 1.0, 1.0), t=[0.0, 0.9, 1.3, 2.0, 60.0][seed], alpha=0.7, grid=2.5)
    out = method.projected_stage(view)
    tower, left = view.tower, method.counts(ROWS * COLUMNS)[0]
    assert left == 24 - round(24 * 0.55)
    for g in range(2):
        attention = loop_attention(tower.query[g], tower.key[g], tower.scale, method.t)[1:]
        entropy = loop_entropy(images[g], 4)
        total = sum(map(math.exp, entropy))
        importance = [
            a + 0.7 * math.exp(e) / total for a, e in zip(attention, entropy, strict=True)
        ]
        torch.testing.assert_close(method.importance(view)[g], torch.tensor(importance), **CLOSE)
        cell = [loop_cell(p, COLUMNS, 2.5) for p in range(ROWS * COLUMNS)]
        features, source, target, sizes, merged = loop_recycle(
            rows_of(view.features[g]), [1] * 24, importance, cell, left
        )
        assert len(source) == left
        assert (rows_of(out.source[g]), rows_of(out.target[g])) == (source, target)
        assert (rows_of(out.sizes[g]), rows_of(out.contextual[g])) == (sizes, merged)
        torch.testing.assert_close(out.features[g], torch.tensor(features), **CLOSE)
        assert out.score is not None
        torch.testing.assert_close(
            out.score[g], torch.tensor([importance[i] for i in source]), **CLOSE
        )


def decoder_view(seed: int, count: int) -> DecoderView:
    """`count` of 24 patches at decoder layer 10, some of which stand for several."""
    draw = torch.Generator().manual_seed(seed)
    identity = torch.stack(
        [torch.randperm(24, generator=draw)[:count].sort().values for _ in range(2)]
    )
    return DecoderView(
        10,
        torch.randn(2, count, 8, generator=draw),
        torch.randint(1, 4, (2, count), generator=draw),
        project=lambda: (torch.empty(0), torch.empty(0)),
        scale=1.0,
        make_keys=list,
        identity=identity,
        grid=GRID,
        full=count,
        score=torch.randn(2, count, generator=draw),
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("recycle", ["encoder", "all"])
def test_inside_the_llm_equals_a_loop(seed: int, recycle: str) -> None:
    method = VFlowOpt((0.75, 0.5, 1.0), recycle=recycle, grid=2.5)  # type: ignore[arg-type]
    view = decoder_view(seed, method.counts(24)[0])
    out, left = method.llm_stage(view), method.counts(24)[1]
    assert view.score is not None
    for g in range(2):
        score, identity = rows_of(view.score[g]), rows_of(view.identity[g])
        if recycle == "all":
            cell = [loop_cell(p, COLUMNS, 2.5) for p in identity]
            features, source, target, sizes, _ = loop_recycle(
                rows_of(view.hidden[g]), rows_of(view.sizes[g]), score, cell, left
            )
            assert (rows_of(out.target[g]), rows_of(out.sizes[g])) == (target, sizes)
            torch.testing.assert_close(out.features[g], torch.tensor(features), **CLOSE)
        else:
            best = sorted(range(len(score)), key=lambda i: (-score[i], i))[:left]
            source = sorted(best)
            assert torch.equal(out.features[g], view.hidden[g, source])
        assert rows_of(out.source[g]) == source


# ------------------------------------------------------------------ what must hold of the parts


def test_tokens_inside_are_dropped_by_the_importance_of_the_encoder() -> None:
    """What the LLM stages keep are the highest scores of those that entered, whatever the LLM's own
    attention says: other decoders keep the same patches.
    """
    method = VFlowOpt((0.5, 0.5, 0.5), (2, 5), t=1.2, alpha=0.5, grid=3.0)
    other = copy.deepcopy(tiny())
    with torch.no_grad():
        for layer in other.model.language_model.layers:
            layer.self_attn.q_proj.weight.normal_()
    kept = []
    for model in (tiny(), other):
        with method(model) as trace:
            out = generate(model, [prompt(3, 6, 1)], pixels(1))
        kept.append(([stage.kept for stage in trace.samples[0].stages], logits(out)))
    assert kept[0][0] == kept[1][0] and not torch.equal(kept[0][1], kept[1][1])
    assert [s.tokens_out for s in trace.samples[0].stages] == [18, 9, 5]


def test_round_trip() -> None:
    for method in (VFlowOpt(), VFlowOpt((0.5, 0.5), (3,), alpha=1, image_std=(0.5,) * 3)):
        assert VFlowOpt.from_dict(json.loads(json.dumps(method.to_dict()))) == method


def test_positions_are_those_of_a_shorter_input_inside_and_out() -> None:
    method = VFlowOpt((0.5, 0.5, 0.5), (2, 5))
    assert (method.positions, method.entry_positions) == ("original", "renumbered")


# ------------------------------------------------------------------ budgets and bad input


@settings(max_examples=200, deadline=None)
@given(
    mean=st.floats(1, 576),
    share=st.floats(0.05, 1),
    excess=st.floats(1, 2),
    depth=st.integers(4, 48),
)
def test_three_counts_have_the_mean(mean: float, share: float, excess: float, depth: int) -> None:
    layers = (max(1, depth // 3), max(2, 2 * depth // 3))
    enter = max(1, min(576, round(mean * excess)))
    try:
        counts = three_counts(mean, enter, share, layers, depth)
    except ValueError as error:
        assert "cannot enter" in str(error) and excess > 1
        return
    assert counts[0] == enter and counts[0] >= counts[1] >= counts[2] >= 1
    held = [counts[(i >= layers[0]) + (i >= layers[1])] for i in range(depth)]
    assert abs(sum(held) / depth - mean) <= 0.75


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 576), depth=st.sampled_from([4, 8, 12, 28, 32, 40]))
def test_average_is_met(tokens: int, depth: int) -> None:
    method = VFlowOpt.from_average(tokens, num_layers=depth)
    assert abs(method.mean_tokens(depth) - tokens) <= 0.5
    assert cells((24, 24), method.grid)[1] <= method.counts(576)[0]


@pytest.mark.parametrize("share", RELEASED)
def test_released_settings_keep_their_share(share: float) -> None:
    """On LLaVA-OneVision's decoder of 28 layers (stages at 9 and 18), any number of patches."""
    method = VFlowOpt(RELEASED[share]["ratios"], (9, 18))
    assert abs(method.mean_tokens(28, 7290) / 7290 - share) < 0.001
    preset = build_method(f"vflowopt@{share:.0%}", geometry=geometry_of(tiny_config()))
    assert preset.to_dict()["ratios"] == list(RELEASED[share]["ratios"])


def tiny_config() -> object:
    """As deep as LLaVA-1.5, where the default layers are."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(image_size=336, patch_size=14)
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig())


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"ratios": (0.5, 0.5)}, "2 ratios"),
        ({"ratios": (0.5, 1.5, 0.5)}, "ratio 1.5"),
        ({"ratios": (0.0, 0.5, 0.5)}, "ratio 0.0"),
        ({"ratios": (0.5, 0.01, 0.5), "recycle": "none"}, "ratio 0.01"),
        ({"layers": (5, 2)}, "list layers rising"),
        ({"layers": (2, LAYERS)}, "layers 0 to 7"),
        ({"t": -1.0}, "t >= 0"),
        ({"grid": 0.5}, "grid >= 1"),
        ({"ratios": (0.2, 1.0, 1.0), "grid": 1.0}, "leaves 36 at least"),
        ({"ratios": (0.5, 0.1, 1.0), "grid": 2.0, "recycle": "all"}, "leaves 9 at least"),
    ],
)
def test_bad_fields_are_refused_before_compute(fields: dict, words: str) -> None:
    fields = {"ratios": (0.5, 0.5, 0.5), "layers": (2, 5), "grid": 3.0, **fields}
    with pytest.raises(ValueError, match=words), VFlowOpt(**fields)(tiny()):
        raise AssertionError("entered")


def test_only_stages_that_recycle_need_a_token_a_cell() -> None:
    """The bad case above, allowed where nothing is recycled inside the LLM; two tokens are left."""
    method = VFlowOpt((0.5, 0.1, 1.0), (2, 5), grid=2.0)
    with method(tiny()) as trace:
        generate(tiny(), [prompt(3, 6, 1)], pixels(1))
    assert trace.samples[0].tokens_per_layer == [18] * 2 + [2] * 6


def test_a_score_goes_on_with_its_token() -> None:
    """Where a later stage sets none, each token keeps its source's."""
    features, sizes = torch.randn(1, 4, 2), torch.ones(1, 4, dtype=torch.long)
    out = keep_only(features, sizes, torch.tensor([[1, 3]]))
    before = torch.tensor([0.5, 0.6, 0.7, 0.8])
    assert score_after(out, before).tolist() == before[[1, 3]].tolist()  # type: ignore[union-attr]
    assert score_after(out, None) is None
    assert score_after(replace(out, score=torch.ones(1, 2)), before).tolist() == [1, 1]  # type: ignore[union-attr]


def test_bad_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="average of 577"):
        VFlowOpt.from_average(577, num_layers=32)
    with pytest.raises(ValueError, match="too shallow"):
        VFlowOpt.from_average(64, num_layers=2)
    with pytest.raises(ValueError, match="cannot enter the LLM; from 64 to"):
        three_counts(64, 300, 1.0, (10, 20), 32)
