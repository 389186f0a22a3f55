"""PyramidDrop's other scores: each against a loop over whole attention maps, the draws against
their own properties, and what a score that knows no text may and may not depend on.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from tests.visiondrop import next_models
from tests.visiondrop.models import IMAGE, LAYERS, PATCHES, generate, logits, pixels, prompt, tiny
from visiondrop import ImageCache
from visiondrop.adapters import Geometry, geometry_of
from visiondrop.decoder_views import RowAttention
from visiondrop.methods import build_method, controls
from visiondrop.methods.pyramiddrop import PyramidDrop, Score
from visiondrop.reducer import Reducer
from visiondrop.reuse import reads_keys, reusable

SCORES = get_args(Score)
READS = ("text", "all_text")
FREE = tuple(score for score in SCORES if score not in READS)
STAGES = ((3, 5), (0.4, 0.1))
KEPT = [int(PATCHES * ratio) for ratio in STAGES[1]]


def pyramid(score: Score, **more: Any) -> PyramidDrop:
    return PyramidDrop(*STAGES, score=score, **more)


def best(scores: list[float], k: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])


def slow_scores(score: Score, maps: torch.Tensor, start: int, n: int) -> list[float]:
    """Of n visual tokens from `start` on, from whole maps [H, N, N] of the layer that comes."""
    heads, length, _ = maps.shape
    rows = {
        "text": [length - 1],
        "all_text": list(range(start + n, length)),
        "visual": list(range(start, start + n)),
        "visual_corrected": list(range(start, start + n)),
    }[score]
    out = []
    for column in range(start, start + n):
        mean = sum(float(maps[h, r, column]) for h in range(heads) for r in rows)
        mean /= heads * len(rows)
        if score == "visual_corrected":  # what attention spread evenly would give the column
            mean /= sum(1 / (r + 1) for r in rows if r >= column) / len(rows)
        out.append(mean)
    return out


def shortened(model: Any, row: list[int], image: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """Maps [H, N', N'] of the second stage's layer: the eager decoder run layer by layer in which
    the row loses all patches but `kept` before the first stage's layer, positions anew.
    """
    decoder = model.model.language_model
    with torch.no_grad():
        out = model(input_ids=torch.tensor([row]), pixel_values=image, output_hidden_states=True)
        start = row.index(IMAGE)
        stay = [*range(start), *(start + k for k in kept), *range(start + PATCHES, len(row))]
        hidden = out.hidden_states[STAGES[0][0]][:, stay]
        places = torch.arange(len(stay))[None]
        turned = decoder.rotary_emb(hidden, position_ids=places)
        mask = torch.full((len(stay), len(stay)), -math.inf).triu(1)[None, None]
        for index in range(*STAGES[0]):
            layer = decoder.layers[index]
            made = layer(hidden, attention_mask=mask, position_embeddings=turned)
            hidden = made if isinstance(made, torch.Tensor) else made[0]
        layer = decoder.layers[STAGES[0][1]]
        _, maps = layer.self_attn(
            layer.input_layernorm(hidden), position_embeddings=turned, attention_mask=mask
        )
    return maps[0]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("score", ["text", "all_text", "visual", "visual_corrected"])
def test_both_stages_choose_what_whole_attention_maps_say(score: Score, kv_heads: int) -> None:
    """Four prompts in one left-padded batch on the quick model; each alone on the slow one."""
    rows = [prompt(3 + s, 4 + s % 3, s) for s in range(4)]
    images = pixels(len(rows))
    with pyramid(score)(tiny(kv_heads=kv_heads)) as trace:
        generate(tiny(kv_heads=kv_heads), rows, images, max_new_tokens=1, min_new_tokens=1)
    slow = tiny(kv_heads=kv_heads, attention="eager")
    for sample, row, image in zip(trace.samples, rows, images, strict=True):
        start = row.index(IMAGE)
        with torch.no_grad():
            out = slow(
                input_ids=torch.tensor([row]), pixel_values=image[None], output_attentions=True
            )
        first = best(slow_scores(score, out.attentions[3][0], start, PATCHES), KEPT[0])
        assert sample.stages[0].source.tolist() == first
        maps = shortened(slow, row, image[None], first)
        second = best(slow_scores(score, maps, start, KEPT[0]), KEPT[1])
        assert sample.stages[1].source.tolist() == second


def test_scores_differ() -> None:
    """So that a score that is another's under a new name is found."""
    rows, images = [prompt(4, 6, s) for s in range(3)], pixels(3)
    chosen = {}
    for score in SCORES:
        with pyramid(score)(tiny(), keys=["a", "b", "c"]) as trace:
            generate(tiny(), rows, images, max_new_tokens=1, min_new_tokens=1)
        chosen[score] = tuple(tuple(s.stages[0].source.tolist()) for s in trace.samples)
    assert len(set(chosen.values())) == len(SCORES)


def test_a_prompt_that_ends_with_its_picture_has_its_last_token_for_a_text() -> None:
    rows, images = [prompt(5, 0)], pixels(1)
    chosen = []
    for score in READS:
        with pyramid(score)(tiny()) as trace:
            generate(tiny(), rows, images, max_new_tokens=1, min_new_tokens=1)
        chosen.append([stage.source.tolist() for stage in trace.samples[0].stages])
    assert chosen[0] == chosen[1]


def test_mean_row_in_chunks_is_the_mean_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more than a chunk of rows is ever formed."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 17, 8, generator=generator)
    turn = torch.zeros(2, 17, 4)

    def project(states: torch.Tensor, cos: Any, sin: Any, what: str) -> torch.Tensor:
        heads = states.unflatten(-1, (2, 4)).transpose(1, 2)
        return heads * (2.0 if what == "query" else 1.0)

    attention = RowAttention(hidden, turn, turn, project, 0.5)
    whole = attention.rows(range(4, 17)).mean((1, 2))
    formed: list[int] = []
    real = RowAttention.rows

    def counted(self: RowAttention, places: Any) -> torch.Tensor:
        formed.append(len(places))
        return real(self, places)

    monkeypatch.setattr(RowAttention, "rows", counted)
    monkeypatch.setattr("visiondrop.decoder_views.CHUNK_ELEMENTS", 5 * 2 * 2 * 17)
    torch.testing.assert_close(attention.mean_row(range(4, 17)), whole)
    assert formed == [5, 5, 3]


@pytest.mark.parametrize("score", FREE)
def test_what_knows_no_text_keeps_the_same_whatever_is_asked(score: Score) -> None:
    """Another question changes no choice, and kept beginnings give whole prompts' answers."""
    method, model = pyramid(score), tiny()
    assert not method.reads_text and reusable(method)
    image = pixels(1)
    first = prompt(4, 6, 1)
    second = [*first[:-6], *prompt(4, 9, 2)[-9:]]
    chosen = []
    for row in (first, second):
        with method(model, keys=["one"]) as trace:
            generate(model, [row], image, max_new_tokens=1, min_new_tokens=1)
        chosen.append([stage.source.tolist() for stage in trace.samples[0].stages])
    assert chosen[0] == chosen[1]
    assert [len(stage) for stage in chosen[0]] == KEPT
    if score != "random":  # a beginning has no sample's key
        end = first.index(IMAGE) + PATCHES
        cache = ImageCache(model, method)
        kept = cache.build(torch.tensor(first[:end]), pixel_values=image)
        ids = cache.generate(
            [kept], [torch.tensor(first[end:])], max_new_tokens=4, min_new_tokens=4
        )
        with method(model):
            whole = generate(model, [first], image, max_new_tokens=4, min_new_tokens=4)
        assert ids[0].tolist() == whole.sequences[0, len(first) :].tolist()


@pytest.mark.parametrize("score", READS)
def test_what_reads_text_is_not_kept_for_other_questions(score: Score) -> None:
    method = pyramid(score)
    assert method.reads_text and not reusable(method) and not reads_keys(method)
    with pytest.raises(ValueError, match="chooses by the text"):
        ImageCache(tiny(), method)


def test_draws_are_seeded_by_seed_key_and_layer() -> None:
    """Two draws of one seed are alike, in any batch; of other seeds or keys they differ."""
    rows, images = [prompt(4, 6, s) for s in range(3)], pixels(3)

    def drawn(method: Reducer, order: list[int]) -> dict[int, list[list[int]]]:
        with method(tiny(), keys=[f"key {i}" for i in order]) as trace:
            ids = [rows[i] for i in order]
            generate(tiny(), ids, images[order], max_new_tokens=1, min_new_tokens=1)
        sources = [[stage.source.tolist() for stage in s.stages] for s in trace.samples]
        return dict(zip(order, sources, strict=True))

    method = pyramid("random", seed=3)
    together = drawn(method, [0, 1, 2])
    assert together == drawn(method, [2, 0, 1])
    assert together[1] == drawn(method, [1])[1]
    assert together != drawn(replace(method, seed=4), [0, 1, 2])
    assert len({str(sources) for sources in together.values()}) == 3
    order = controls.permutation("3/3/key 1", PATCHES).tolist()
    assert together[1][0] == sorted(order[: KEPT[0]])


def test_draws_favour_no_place() -> None:
    """Of 400 drawn pyramids every patch is kept about equally often at the last stage."""
    counts: Counter[int] = Counter()
    for picture in range(400):
        present = list(range(PATCHES))
        for layer, kept in zip(STAGES[0], KEPT, strict=True):
            order = controls.permutation(f"0/{layer}/picture {picture}", len(present)).tolist()
            present = [present[i] for i in sorted(order[:kept])]
        counts.update(present)
    expected = 400 * KEPT[1] / PATCHES
    spread = sum((counts[p] - expected) ** 2 / expected for p in range(PATCHES))
    assert spread < 66.6  # chi-square with 35 degrees of freedom: once in a thousand


def test_uniform_is_the_even_spacing_of_what_is_left() -> None:
    with pyramid("uniform")(tiny()) as trace:
        generate(tiny(), [prompt(4, 6)], pixels(1), max_new_tokens=1, min_new_tokens=1)
    present = list(range(PATCHES))
    for stage, kept in zip(trace.samples[0].stages, KEPT, strict=True):
        at = [math.floor((i + 0.5) * len(present) / kept) for i in range(kept)]
        assert stage.source.tolist() == at
        present = [present[i] for i in at]


@pytest.mark.parametrize("newlines", ["pool", "row"])
@pytest.mark.parametrize("score", FREE)
def test_pictures_of_any_resolution(score: Score, newlines: Any) -> None:
    """Newlines as tokens like others (released), or not seen: whole batch = its rows = eager."""
    method = PyramidDrop((2, 4), (0.5, 0.2), score=score).on_tiles(newlines=newlines)
    pictures = [[next_models.SIZES[0]], [next_models.SIZES[1]]]
    rows = [next_models.prompt(3 + i, 5, i, own) for i, own in enumerate(pictures)]
    images = next_models.inputs(sum(pictures, []), [1, 2])
    model, slow = next_models.tiny_next(), next_models.tiny_next(attention="eager")
    with method(model, keys=["a", "b"]) as trace:
        out = next_models.generate(model, rows, images)
    with method(slow, keys=["a", "b"]) as again:
        other = next_models.generate(slow, rows, images)
    torch.testing.assert_close(logits(out), logits(other), atol=2e-4, rtol=1e-4)
    for one, two in zip(trace.samples, again.samples, strict=True):
        assert one.tokens_per_layer == two.tokens_per_layer
        assert one.tokens_per_layer[0] > one.tokens_per_layer[2] > one.tokens_per_layer[4]


@pytest.mark.parametrize("score", READS)
def test_scores_by_text_need_newlines_as_tokens(score: Score) -> None:
    method = PyramidDrop((2, 4), (0.5, 0.2), score=score).on_tiles(newlines="row")
    with pytest.raises(ValueError, match="newlines='pool'"), method(next_models.tiny_next()):
        pass


def test_what_is_written_down_is_as_before_where_nothing_is_chosen() -> None:
    """Answers on disk are known by it. Read back, it is the same method."""
    plain = PyramidDrop((2, 4), (0.5, 0.25), seed=5)
    assert plain.to_dict() == {
        "name": "pyramiddrop", "layers": [2, 4], "ratios": [0.5, 0.25], "positions": "renumbered",
    }  # fmt: skip
    for score in SCORES:
        method = pyramid(score)
        assert Reducer.from_dict(method.to_dict()) == method
        assert ("seed" in method.to_dict()) == (score == "random")


def test_unknown_scores_are_refused_before_any_compute() -> None:
    geometry = geometry_of(tiny().config)
    with pytest.raises(ValueError, match="score='cls'; possible: 'text'"):
        PyramidDrop((2,), (0.5,), score="cls").check(geometry)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score='cls'; possible"):
        build_method("pyramiddrop", 12, geometry=geometry, args={"score": "cls"})


def test_budgets_do_not_depend_on_the_score() -> None:
    geometry = Geometry(LAYERS, PATCHES, True, (6, 6))
    ledgers = {
        tuple(build_method("pyramiddrop", 14, geometry=geometry, args={"score": score})
              .ledger(LAYERS, PATCHES))
        for score in SCORES
    }  # fmt: skip
    assert len(ledgers) == 1
