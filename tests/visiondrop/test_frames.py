"""Pictures of one prompt as frames: differential token drop and its frame-wise control.

They need several pictures in a prompt, so the identities of the matrix stand here for them.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.visiondrop.models import LAYERS, PATCHES, generate, logits, pixels, prompt, tiny
from visiondrop import VisionDrop
from visiondrop.functional.patches import CLIP_STD
from visiondrop.methods.dtd import DTD
from visiondrop.methods.framewise import FrameWise
from visiondrop.reducer import Reducer
from visiondrop.views import PromptView

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
GRID = (3, 5)


def view(seed: int, frames: int = 4, dtype: torch.dtype = torch.float32) -> PromptView:
    """Frames of which each repeats some places of the one before, nearly."""
    draw = torch.Generator().manual_seed(seed)
    pictures = [torch.randn(15, 6, generator=draw, dtype=dtype)]
    images = [torch.randn(3, 12, 21, generator=draw, dtype=dtype)]  # a column is left over
    for _ in range(frames - 1):
        stays = torch.rand(15, 1, generator=draw) < 0.5
        fresh = torch.randn(15, 6, generator=draw, dtype=dtype)
        pictures.append(torch.where(stays, pictures[-1] * 1.5 + fresh * 0.6, fresh))
        images.append(images[-1] + torch.randn(3, 12, 21, generator=draw, dtype=dtype) * 0.4)
    ones = [torch.ones(15, dtype=torch.long)] * frames
    return PromptView(pictures, ones, GRID, images, [""] * frames)  # type: ignore[arg-type]


def loop_alike(view: PromptView, t: int, p: int, by: str) -> float:
    """How alike place p of frame t is to that of frame t - 1."""
    if by == "feature":
        a, b = view.pictures[t - 1][p].tolist(), view.pictures[t][p].tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    row, column, total = p // GRID[1], p % GRID[1], 0.0
    before, now = view.pixels[t - 1], view.pixels[t]
    assert before is not None and now is not None
    for c in range(3):
        for y in range(row * 4, row * 4 + 4):
            for x in range(column * 4, column * 4 + 4):
                total += abs(float(now[c, y, x]) - float(before[c, y, x])) * CLIP_STD[c]
    return -total / 48


def loop_dtd(view: PromptView, by: str, limit: float, share: float | None) -> list[list[int]]:
    kept = [list(range(15))]
    for t in range(1, len(view.pictures)):
        alike = [loop_alike(view, t, p, by) for p in range(15)]
        if share is None:
            kept.append([p for p in range(15) if not alike[p] > limit])
        else:
            most = sorted(range(15), key=lambda p: -alike[p])[: int(15 * share)]
            kept.append([p for p in range(15) if p not in most])
    return kept


def places(reductions: Any, total: int = 15) -> list[list[int]]:
    return [list(range(total)) if r is None else r.source[0].tolist() for r in reductions]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "method, limit",
    [
        (DTD(), 0.5),
        (DTD(threshold=0.9), 0.9),
        (DTD(by="pixel", threshold=0.085), -0.085),
        (DTD(share=0.65), None),
        (DTD(by="pixel", share=0.2), None),
    ],
    ids=["feature", "high", "pixel", "share", "pixel-share"],
)
def test_dtd_equals_a_loop(method: DTD, limit: float, seed: int) -> None:
    seen = view(seed)
    out = method.prompt_stage(seen)
    expected = loop_dtd(seen, method.by, limit, method.share)
    assert places(out) == expected
    assert 0 < sum(map(len, expected[1:])) < 45  # something stays and something goes
    for t, reduction in enumerate(out):
        if reduction is not None:
            assert torch.equal(reduction.features[0], seen.pictures[t][expected[t]])
            assert int((reduction.target >= 0).sum()) == len(expected[t])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("by", ["feature", "pixel"])
def test_framewise_equals_a_loop(seed: int, by: Any) -> None:
    seen = view(seed)
    spaced = [int((i + 0.5) * 15 / 4) for i in range(4)]
    expected = [spaced]
    for t in range(1, 4):
        change = sorted(range(15), key=lambda p: loop_alike(seen, t, p, by))
        expected.append(sorted(change[:4]))
    assert places(FrameWise(4, by=by).prompt_stage(seen)) == expected
    assert places(FrameWise(4, "uniform").prompt_stage(seen)) == [spaced] * 4


def test_a_frame_is_judged_against_the_whole_frame_before() -> None:
    """A slow drift: each frame is nearly the one before it, the last nothing like the first. All
    later tokens go, since what was dropped still counts as the frame before.
    """
    turn = [torch.tensor([[[1.0, 0.0]], [[0.8, 0.6]], [[0.28, 0.96]]])[t] for t in range(3)]
    seen = PromptView(turn, [torch.ones(1, dtype=torch.long)] * 3, (1, 1), [None] * 3, [""] * 3)
    assert float(turn[0] @ turn[2].T) < 0.5
    assert places(DTD().prompt_stage(seen), 1) == [[0], [], []]


def test_scale_does_not_count_and_an_equal_frame_vanishes() -> None:
    model, images = tiny(), pixels(1).repeat(3, 1, 1, 1)
    row = prompt(3, 4, 1, pictures=3)
    with DTD()(model) as trace:
        out = generate(model, [row], images)
    assert trace.samples[0].tokens_per_layer == [PATCHES] * LAYERS
    held = out.past_key_values.layers[0].get_seq_length()
    assert held == len(row) - 2 * PATCHES + 4


def test_round_trip() -> None:
    for method in (DTD(by="pixel", image_std=(0.5,) * 3), DTD(), FrameWise(9, "uniform")):
        assert Reducer.from_dict(json.loads(json.dumps(method.to_dict()))) == method


def test_float64() -> None:
    for method in (DTD(), DTD(by="pixel"), FrameWise(3)):
        for reduction in method.prompt_stage(view(1, dtype=torch.float64)):
            assert reduction is None or reduction.features.dtype == torch.float64


# ------------------------------------------------------------------ identities

METHODS: dict[str, Reducer] = {
    "dtd": DTD(threshold=0.1),
    "dtd-pixel": DTD(by="pixel", threshold=0.29, positions="renumbered"),
    "dtd-share": DTD(share=0.7),
    "framewise": FrameWise(9),
    "framewise-then-visiondrop": FrameWise(7, select="uniform", positions="renumbered")
    + VisionDrop(llm={3: (4, 2)}),
}
ROWS = [prompt(3, 6, 1, pictures=2), prompt(5, 4, 2, pictures=3)]


def run(model: Any, method: Reducer, rows: list[list[int]], images: torch.Tensor, **kw: Any) -> Any:
    with method(model) as trace:
        return generate(model, rows, images, **kw), trace


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", METHODS)
def test_identities(name: str, attention: str) -> None:
    """Batch = singles, sdpa = eager, cached = recomputed, later turn = fresh prompt, hooks gone,
    and the cache holds what the trace says.
    """
    kind = {"tower": "siglip", "decoder": "qwen2", "kv_heads": 2} if "share" in name else {}
    model, method, images = tiny(**kind, attention=attention), METHODS[name], pixels(5)
    out, trace = run(model, method, ROWS, images)
    assert 1 <= trace.mean_tokens < 2.5 * PATCHES
    for i, part in enumerate((images[:2], images[2:])):
        one, single = run(model, method, ROWS[i : i + 1], part)
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)
        assert trace.samples[i].to_dict() == single.samples[0].to_dict()
        held = [layer.get_seq_length() for layer in one.past_key_values.layers]
        text = len(ROWS[i]) - (2 + i) * PATCHES
        assert held == [text + visual + 4 for visual in single.samples[0].tokens_per_layer]
    other = tiny(**kind, attention="eager" if attention == "sdpa" else "sdpa")
    torch.testing.assert_close(logits(run(other, method, ROWS, images)[0]), logits(out), **CLOSE)
    again, _ = run(model, method, ROWS, images, use_cache=False)
    torch.testing.assert_close(logits(again), logits(out), **CLOSE)
    with method(model):
        first = generate(model, ROWS[:1], images[:2])
        turn = [*first.sequences[0].tolist(), 11, 12, 13]
        kept = generate(model, [turn], None, past_key_values=first.past_key_values)
    fresh, _ = run(model, method, [turn], images[:2])
    torch.testing.assert_close(logits(kept), logits(fresh), **CLOSE)
    assert "get_image_features" not in model.model.__dict__


@pytest.mark.parametrize(
    "method", [DTD(threshold=1.0), DTD(share=0.0), FrameWise(PATCHES)], ids=["dtd", "share", "all"]
)
def test_nothing_dropped_equals_unpruned(method: Reducer) -> None:
    model, images = tiny(), pixels(5)
    out, _ = run(model, method, ROWS, images)
    torch.testing.assert_close(logits(out), logits(generate(model, ROWS, images)), **CLOSE)


def test_the_plan_of_framewise_is_what_each_frame_holds() -> None:
    method = FrameWise.from_average(9, num_layers=LAYERS, num_patches=PATCHES)
    _, trace = run(tiny(), method, ROWS, pixels(5))
    held = [9] * LAYERS
    assert method.ledger(LAYERS, PATCHES) == held
    assert trace.samples[0].tokens_per_layer == [2 * n for n in held]
    assert [stage.tokens_out for stage in trace.samples[1].stages] == [9, 9, 9]


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("method", [DTD(), FrameWise(5)], ids=["dtd", "framewise"])
def test_one_picture_is_refused_naming_what_works(method: Reducer) -> None:
    model = tiny()
    with method(model):
        with pytest.raises(ValueError, match="prompt 1 has one; methods that work here: .*uniform"):
            generate(model, [ROWS[0], prompt(3, 4, 1)], pixels(3))
        text = generate(model, [[1, 5, 6, 7]], None)  # a prompt without any is none of its business
    assert text.sequences.shape[1] == 9


def test_frames_are_refused_before_the_tower_runs() -> None:
    model = tiny()
    ran = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: ran.append(1))
    handle_embed = model.model.vision_tower.embeddings.register_forward_hook(
        lambda *_: ran.append(1)
    )
    try:
        with pytest.raises(ValueError, match="needs several pictures"), DTD()(model):
            ids = torch.tensor([prompt(3, 4, 1)])
            model(input_ids=ids, pixel_values=pixels(1), logits_to_keep=1)
    finally:
        handle.remove()
        handle_embed.remove()
    assert not ran


@pytest.mark.parametrize(
    "method, words",
    [
        (DTD(threshold=1.5), "threshold=1.5; by feature it is -1 to 1"),
        (DTD(by="pixel", threshold=-0.1), "by pixel it is 0 to 1"),
        (DTD(share=1.2), "share=1.2"),
        (DTD(share=0.2, threshold=0.5), "both given"),
        (FrameWise(0), "tokens=0"),
        (FrameWise(PATCHES + 1), "tokens=37"),
    ],
)
def test_bad_fields_are_refused_before_compute(method: Reducer, words: str) -> None:
    with pytest.raises(ValueError, match=words), method(tiny()):
        raise AssertionError("entered")


def test_no_token_budget_for_dtd() -> None:
    assert not DTD.budgeted() and FrameWise.budgeted()
    with pytest.raises(ValueError, match="takes no token budget"):
        DTD.from_average(64, num_layers=32)


def test_unequal_frames_and_missing_pixels() -> None:
    seen = view(0)
    seen.pictures[2] = seen.pictures[2][:9]
    with pytest.raises(ValueError, match=r"they have \[9, 15\] tokens"):
        DTD().prompt_stage(seen)
    seen = view(0)
    seen.pixels[1] = None
    with pytest.raises(ValueError, match="use by='feature'"):
        DTD(by="pixel").prompt_stage(seen)
