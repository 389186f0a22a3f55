"""What a tiny Video-LLaVA does with clips beside the identities: budgets, keys, beams, names,
frames, refusals.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import VideoLlavaForConditionalGeneration

from tests.visiondrop.models import LAYERS, batch, logits
from tests.visiondrop.test_video_llava import CLOSE, KINDS, ROWS, SETTINGS, STAGED, WHOLE, run
from tests.visiondrop.video_models import (
    CLIP_TOKENS,
    FRAME,
    FRAMES,
    IMAGE,
    PATCHES,
    PICTURES,
    VIDEO,
    clip,
    generate,
    inputs,
    picture,
    prompt,
    tiny_video,
)
from visiondrop import Random, VisionDrop
from visiondrop.adapters import geometry_of
from visiondrop.methods import METHODS, build_method
from visiondrop.methods.dtd import DTD
from visiondrop.methods.fastv import FastV
from visiondrop.methods.visionzip import VisionZip
from visiondrop.tower_cache import TowerCache


@pytest.mark.parametrize("tokens", [16, 13, 17])
def test_the_papers_schedule_enters_with_three_times_the_mean(tokens: int) -> None:
    """And is the default for a model of videos; for a whole decoder the mean is exact."""
    made = build_method("visiondrop", tokens, geometry=geometry_of(tiny_video()))
    assert sum(made.encoder) == 3 * tokens  # type: ignore[attr-defined]
    _, trace = run(tiny_video(), made, ROWS[:1], inputs("v", [1]))
    assert trace.mean_tokens == made.mean_tokens(LAYERS, CLIP_TOKENS, False)
    assert abs(trace.mean_tokens - tokens) <= 0.25
    real = VisionDrop.from_average(
        136, num_layers=32, num_patches=2056, has_cls=False, entry=3.0
    )  # LLaVA's sizes: 408, 103, 26, 7
    totals = [sum(real.encoder), *(sum(budget) for budget in real.llm.values())]  # type: ignore[arg-type]
    assert totals[0] == 408 and real.mean_tokens(32, 2056, False) == 136
    decay = totals[1] / totals[0]
    assert 3 * sum(decay**k for k in range(4)) == pytest.approx(4, abs=0.01)


def test_frames_share_equally_and_each_keeps_its_cls() -> None:
    _, trace = run(tiny_video(), VisionZip(11, 3), ROWS[:1], inputs("v", [1]))
    sample = trace.samples[0]
    stage, grid = sample.stages[0], sample.grids[0]
    frames = [grid.locate(token)[:2] for token in stage.identity[stage.source].tolist()]
    assert [sum(frame == f for _, frame in frames) for f in range(FRAMES)] == [4, 5, 5]
    assert [frame for kind, frame in frames if kind == "cls"] == list(range(FRAMES))
    assert grid.locate(FRAME) == ("cls", 1, -1, -1)
    assert grid.locate(2 * FRAME + 1 + 6) == ("patch", 2, 1, 2)
    assert stage.identity.tolist() == list(range(CLIP_TOKENS))


def test_keys_and_names_of_pictures_and_clips() -> None:
    """Draws go by the key of each picture or clip, told by kind; known clips pass no tower."""
    model, pixels, method = tiny_video(), inputs("vpvp", [1, 2, 3, 4]), Random(9, seed=1)
    outs = []
    for clips in (["a", "b"], ["a", "b"], ["x", "b"]):
        with method(model) as trace:
            trace.set_keys({"image": ["c", "d"], "video": clips})
            generate(model, ROWS, pixels)
        outs.append([sample.to_dict()["stages"] for sample in trace.samples])
    assert outs[0] == outs[1] and outs[0][0] != outs[2][0] and outs[0][1:] == outs[2][1:]
    cache, made = TowerCache(1 << 24), []
    for _ in range(2):
        with STAGED(model, tower_cache=cache) as trace:
            trace.set_pictures({"image": ["c", "d"], "video": ["a", "b"]})
            made.append(logits(generate(model, ROWS, pixels)))
    assert torch.equal(made[0], made[1]) and cache.hits == cache.misses == 2 + 2 * FRAMES
    torch.testing.assert_close(made[0], logits(run(model, STAGED, ROWS, pixels)[0]), **CLOSE)
    with pytest.raises(ValueError, match="3 sample keys for 2 pictures"), method(model) as trace:
        trace.set_keys(["a", "b", "c"])
        generate(model, ROWS, pixels)


@pytest.mark.parametrize("kinds", ["v", "pvv"])
def test_beams_samples_and_forward(kinds: str) -> None:
    model, rows = tiny_video(), [prompt(3, 5, 1, kinds), ROWS[1]]
    pixels = inputs(kinds + KINDS[1], list(range(len(kinds) + 2)))
    options = {"max_new_tokens": 4, "min_new_tokens": 4}
    out, _ = run(model, STAGED, rows, pixels, num_beams=3, **options)
    for i in range(2):
        own = inputs(
            [kinds, KINDS[1]][i], [list(range(len(kinds))), [len(kinds), len(kinds) + 1]][i]
        )
        one, _ = run(model, STAGED, rows[i : i + 1], own, num_beams=3, **options)
        assert out.sequences[i, -4:].tolist() == one.sequences[0, -4:].tolist()
    # Beams of a model that drops nothing are the unpruned model's.
    keep, _ = run(model, WHOLE["visiondrop"], rows, pixels, num_beams=3, **options)
    assert torch.equal(
        keep.sequences, generate(model, rows, pixels, num_beams=3, **options).sequences
    )
    greedy, _ = run(model, STAGED, rows, pixels)
    with STAGED(model), torch.no_grad():
        first = model(**batch(rows), **pixels, logits_to_keep=1).logits[:, 0]
    torch.testing.assert_close(first, logits(greedy)[0], **CLOSE)


@pytest.mark.skipif(PICTURES != "pixel_values", reason="a version with one name, encoding inside")
def test_the_older_name_of_pictures_and_features_from_outside() -> None:
    model, pixels = tiny_video(), inputs("vpvp", [1, 2, 3, 4])
    older = dict(pixels)
    older["pixel_values_images"] = older.pop("pixel_values")
    out, _ = run(model, STAGED, ROWS, pixels)
    torch.testing.assert_close(logits(run(model, STAGED, ROWS, older)[0]), logits(out), **CLOSE)
    with pytest.raises(ValueError, match="logits_to_keep"), STAGED(model):
        model(**batch(ROWS), pixel_values_images=pixels["pixel_values"])
    method = FastV(2, tokens=12)
    with torch.no_grad():
        ready = {
            "image": model.model.get_image_features(pixels["pixel_values"]),
            "video": model.model.get_video_features(pixels["pixel_values_videos"]),
        }
    expected, seen = run(model, method, ROWS, pixels)
    with method(model) as trace:
        got = model.generate(
            **batch(ROWS), mm_encoder_outputs=ready, max_new_tokens=4, min_new_tokens=4,
            do_sample=False, suppress_tokens=[IMAGE, VIDEO],
        )  # fmt: skip
    assert torch.equal(got, expected.sequences)
    assert [s.tokens_by_picture for s in trace.samples] == [
        s.tokens_by_picture for s in seen.samples
    ]
    with pytest.raises(ValueError, match="encoded elsewhere"), STAGED(model):
        model(**batch(ROWS), mm_encoder_outputs=ready, logits_to_keep=1)


def test_save_and_load(tmp_path: Path) -> None:
    model, pixels = tiny_video(), inputs("vpvp", [1, 2, 3, 4])
    out, _ = run(model, STAGED, ROWS, pixels)
    with STAGED(model):
        model.save_pretrained(tmp_path)
    loaded = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    loaded.generation_config.pad_token_id = 0
    torch.testing.assert_close(logits(run(loaded, STAGED, ROWS, pixels)[0]), logits(out), **CLOSE)


def test_framed_methods_see_a_clip_as_pictures_of_a_prompt() -> None:
    """The frames of a clip in one run = the same tokens as dtd keeps of frames given to its own
    loop; clips and pictures of one prompt are told apart.
    """
    model = tiny_video()
    tower = model.model.video_tower
    with torch.no_grad():
        hidden = tower(clip(1), output_hidden_states=True).hidden_states[-2]
        frames = model.model.multi_modal_projector(hidden)
    expected = list(range(FRAME))
    for f in range(1, FRAMES):
        for p in range(FRAME):
            a, b = frames[f - 1, p].tolist(), frames[f, p].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            alike = dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
            if not alike > 0.97:
                expected.append(f * FRAME + p)
    row = prompt(3, 5, 1, "pvp")
    assert FRAME < len(expected) < CLIP_TOKENS
    _, trace = run(model, DTD(threshold=0.97), [row], inputs("pvp", [4, 1, 5]))
    stages = trace.samples[0].stages
    assert [stage.picture for stage in stages] == [1, 2]  # the first picture stays whole
    assert stages[0].kept == expected
    assert 0 < stages[1].tokens_out <= stages[1].tokens_in == PATCHES


def test_pixels_stand_for_cls_too() -> None:
    """By pixel, a frame's CLS is as alike as its whole frame is."""
    images = clip(1)
    std = (1.0, 1.0, 1.0)
    change = (images[1:] - images[:-1]).abs().mean((1, 2, 3))
    limit = float(change.mean())
    assert (change > limit).any() and (change < limit).any()
    method = DTD(by="pixel", threshold=min(limit, 1.0), image_std=std)
    _, trace = run(tiny_video(), method, ROWS[:1], inputs("v", [1]))
    kept = trace.samples[0].stages[0].kept
    for f in range(1, FRAMES):
        assert (f * FRAME in kept) == bool(change[f - 1] >= limit)


def test_what_is_not_defined_is_refused() -> None:
    model = tiny_video()
    tested = {method.name for method in SETTINGS.values()} - {"composed"}
    works = "methods that work here: dart, divprune, dtd.*visionzip"
    for name in sorted(set(METHODS) - tested - {"globalcom2", "cdpruner"}):
        with pytest.raises(ValueError, match=f"not defined on videos.*{works}"):
            METHODS[name]()(model).__enter__()
    with pytest.raises(ValueError, match="crops beside a thumbnail"):
        METHODS["globalcom2"]()(model).__enter__()
    with pytest.raises(ValueError, match="no CLIP"):
        METHODS["cdpruner"](9)(model).__enter__()
    with pytest.raises(ValueError, match="tokens=52.*1 to 51"):
        Random(CLIP_TOKENS + 1)(model).__enter__()
    with pytest.raises(ValueError, match="prompt 0 has one"), DTD()(model):
        generate(model, [prompt(3, 5, 1, "pv")], inputs("pv", [1, 2]))
    split = STAGED.on_pictures(budget="split")
    with pytest.raises(ValueError, match="cannot split a budget before the LLM"), split(model):
        generate(model, [prompt(3, 5, 1, "vv")], inputs("vv", [1, 2]))
    with STAGED(model) as trace:
        generate(model, ROWS[:1], inputs("v", [1]))
    with pytest.raises(ValueError, match=f"1 pictures for a video of {FRAMES} frames"):
        trace.draw(Image.new("RGB", (9, 9)), "never.png")


def test_picture_alone_is_as_in_llava() -> None:
    """The tokens of a picture, which no CLS goes with where the budget leaves it whole."""
    _, trace = run(tiny_video(), VisionDrop(encoder=(9, 2)), [ROWS[3]], inputs("p", [4]))
    stage = trace.samples[0].stages[0]
    assert stage.kept[0] == -1 and stage.tokens_in == PATCHES + 1 and stage.tokens_out == 11
    assert trace.samples[0].grids == [None]
    assert picture(4).shape == (3, 24, 24)
