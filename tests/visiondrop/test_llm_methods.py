"""FastV, PyramidDrop, SparseVLM, SparseVLM+ and DART: their first choice against the attention maps
of an unpruned eager model.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.visiondrop.models import IMAGE, PATCHES, generate, pixels, prompt, tiny
from visiondrop.decoder_views import DecoderView, RowAttention, RowView
from visiondrop.merging import Reduction
from visiondrop.methods.dart import DART
from visiondrop.methods.fastv import FastV
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus
from visiondrop.reducer import Reducer

SEEDS = range(5)


def unpruned(model: Any, row: list[int], image: torch.Tensor) -> Any:
    """Attention maps, hidden states and keys of the eager model on one prompt."""
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([row]),
            pixel_values=image,
            output_attentions=True,
            output_hidden_states=True,
            use_cache=True,
        )


def best(scores: torch.Tensor, k: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -float(scores[i]))[:k])


def slow_choice(method: Any, model: Any, row: list[int], image: torch.Tensor) -> list[int]:
    """The patches that stay at a method's first drop, from what eager attention says."""
    out = unpruned(model, row, image)
    start = row.index(IMAGE)
    end = start + PATCHES
    if isinstance(method, FastV):
        return best(out.attentions[method.layer - 1][0, :, -1, start:end].mean(0), method.tokens)
    if isinstance(method, PyramidDrop):
        maps = out.attentions[method.layers[0]][0]
        return best(maps[:, -1, start:end].mean(0), int(PATCHES * method.ratios[0]))
    embeds = out.hidden_states[0][0]
    if isinstance(method, SparseVLM | SparseVLMPlus):
        dots = (embeds[start:end] @ embeds[end:].T).softmax(-1).mean(0)
        raters = [i + end for i, share in enumerate(dots) if share > dots.mean()]
        maps = out.attentions[method.layers[0]][0][:, raters, start:end]
        if isinstance(method, SparseVLMPlus):
            half, heads = 4, round(14 / 32 * maps.shape[0])
            for i, rater in enumerate(raters):
                for j in range(PATCHES):
                    gap = rater - start - j
                    g = sum(math.cos(gap * 10000 ** (-m / half)) for m in range(half))
                    maps[:, i, j] /= 2 / math.sqrt(2 * half) * g
            maps = maps[maps.sum((1, 2)).topk(heads).indices]
        return best(maps.mean((0, 1)), method.tokens[0])
    assert isinstance(method, DART)
    keys = out.past_key_values.layers[method.layer - 1].keys[0]
    norm = keys.abs().sum((0, 2)).tolist()
    visual = sorted(range(start, end), key=lambda i: -norm[i])[: method.visual_pivots]
    text = sorted(range(end, len(row)), key=lambda i: -norm[i])[: method.text_pivots]
    states = model.model.language_model.norm(out.hidden_states[method.layer])[0].detach()
    pool, stay = [i for i in range(start, end) if i not in visual], list(visual)
    each, more = divmod(method.tokens - len(visual), len(visual) + len(text))
    for turn, pivot in enumerate(set(visual + text)):
        near = {i: float(torch.cosine_similarity(states[i], states[pivot], dim=0)) for i in pool}
        stay += sorted(pool, key=lambda i: near[i])[: each + (turn < more)]
        pool = [i for i in pool if i not in stay]
    return sorted(i - start for i in stay)


CHOICES: dict[str, Reducer] = {
    "fastv": FastV(2, tokens=9),
    "pyramiddrop": PyramidDrop((3, 5), (0.4, 0.1)),
    "sparsevlm": SparseVLM((2, 5), (14, 6)),
    "sparsevlm+": SparseVLMPlus((2, 5), (14, 6)),
    "dart": DART(2, tokens=17),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", CHOICES)
def test_first_choice_equals_attention_maps(name: str, kv_heads: int) -> None:
    """Five random prompts and pictures in one left-padded batch on the quick model; each alone,
    with whole maps, on the slow one. Keys shared by heads included.
    """
    rows = [prompt(3 + s, 4 + s % 3, s) for s in SEEDS]
    images = pixels(len(rows))
    method = CHOICES[name]
    with method(tiny(kv_heads=kv_heads)) as trace:
        generate(tiny(kv_heads=kv_heads), rows, images, max_new_tokens=1, min_new_tokens=1)
    slow = tiny(kv_heads=kv_heads, attention="eager")
    for sample, row, image in zip(trace.samples, rows, images, strict=True):
        stage = sample.stages[0]
        stay = stage.source[~stage.contextual].tolist()
        assert stay == slow_choice(method, slow, row, image[None])


def test_adaptive_counts_follow_the_rank() -> None:
    """The paper's SparseVLM: int(lambda (n - rank)) dropped, from whole maps of the eager model."""
    rows, images = [prompt(4, 9, 7), prompt(4, 9, 8)], pixels(2)
    method = SparseVLM((2,), (1,), adaptive=0.6)
    with method(tiny()) as trace:
        generate(tiny(), rows, images, max_new_tokens=1, min_new_tokens=1)
    counts = []
    for sample, row, image in zip(trace.samples, rows, images, strict=True):
        out = unpruned(tiny(attention="eager"), row, image[None])
        start, end = row.index(IMAGE), row.index(IMAGE) + PATCHES
        embeds = out.hidden_states[0][0]
        dots = (embeds[start:end] @ embeds[end:].T).softmax(-1).mean(0)
        raters = [i + end for i, share in enumerate(dots) if share > dots.mean()]
        matrix = out.attentions[2][0][:, raters, start:end].mean(0)
        values = torch.linalg.svdvals(matrix)
        rank = int((values > values[0] * PATCHES * torch.finfo(matrix.dtype).eps).sum())
        stage = sample.stages[0]
        kept = PATCHES - int(0.6 * (PATCHES - rank))
        assert rank == len(raters)
        stay = stage.source[~stage.contextual].tolist()
        assert stay == best(matrix.mean(0), kept)
        counts.append(kept)
    assert len(set(counts)) == 2


def test_the_question_decides() -> None:
    """One picture, two questions: what stays differs, as text-guided methods mean it."""
    rows = [prompt(3, 6, 1), [*prompt(3, 6, 1)[: 4 + PATCHES], 40, 41, 42, 43, 44, 45]]
    for method in CHOICES.values():
        with method(tiny()) as trace:
            generate(tiny(), rows, pixels(1).expand(2, -1, -1, -1))
        first, second = (sample.stages[0].source.tolist() for sample in trace.samples)
        assert first != second


def test_random_noise_depends_on_the_sample_alone() -> None:
    """Seeded by the sample's key: the same in another batch, another in another sample."""
    method = SparseVLM((1,), (4,), noise="random")
    view: Any = type("View", (), {"layer": 2, "keys": ["a", "b"], "hidden": torch.zeros(2, 3, 1)})
    both = method.tie_break(view, 9)
    view.keys = ["b"]
    assert both is not None and both.shape == (2, 9) and not torch.equal(both[0], both[1])
    alone = method.tie_break(view, 9)
    assert alone is not None and torch.equal(alone[0], both[1])


@pytest.mark.parametrize("name", CHOICES)
def test_nothing_is_read_back_from_the_device(name: str) -> None:
    """A stage on tensors without data: whatever waited for a value would raise."""
    groups, n, width, heads, start, after = 2, 60, 16, 4, 5, 7
    total = start + n + after
    meta = lambda *shape: torch.empty(*shape, device="meta")  # noqa: E731
    with pytest.raises((RuntimeError, NotImplementedError)):
        meta(3).argmax().item()

    def project(hidden: Any, _cos: Any, _sin: Any, what: str) -> torch.Tensor:
        kept = hidden[..., : 8 if what == "key" else 16]
        return kept.view(*hidden.shape[:2], -1, 4).transpose(1, 2)

    row = meta(groups, total, width)
    angles = meta(groups, total, width // heads)
    attention = RowAttention(row, angles, angles, project, 0.5)
    places = torch.arange(start + n, total, device="meta")
    inputs = (meta(groups, n, width), meta(groups, after, width))
    norm = torch.nn.LayerNorm(width, device="meta")
    method = CHOICES[name]
    view = DecoderView(
        method.llm_layers()[0],
        row[:, start : start + n],
        meta(groups, n).long(),
        lambda: (row, row),
        0.5,
        lambda: ["a", "b"],
        meta(groups, n).long(),
        (6, 10),
        n,
        row=RowView(start, row, places, attention, attention, inputs, norm),
    )
    out = method.llm_stage(view)
    assert isinstance(out, Reduction) and out.features.shape == (*out.source.shape, width)
    assert out.source.shape[1] == method.ledger(8, n)[view.layer]
