"""The pocket video model's training code: exact, resumable, and the tower frozen bit for bit."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers import VideoLlavaForConditionalGeneration as Stock

from llava.conversation import conv_templates
from llava.train.pocket_data import IGNORE
from llava.train.pocket_forward import decoder_states
from llava.train.pocket_model import make_tokenizer
from llava.train.pocket_video import VideoRun, export_run, train
from llava.train.pocket_video_data import ClipData, ClipTeacher, VideoPhase
from llava.train.pocket_video_loss import PocketVideo
from llava.train.pocket_video_model import (
    VIDEO,
    WORDS,
    export_video,
    from_pocket,
    make_video_tokenizer,
    tower_digest,
    window_ids,
)
from playground.pocket.clip_questions import clip_questions
from playground.pocket.clips import make_clip
from tests.train.tiny import write_checkpoint

FULL = VideoPhase("t", 16, 8, 1, 1, 1, 160)


@pytest.fixture(scope="module")
def tokenizer():
    return make_video_tokenizer()


@pytest.fixture(scope="module")
def image_model(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def pocket(image_model, tokenizer) -> PocketVideo:
    llava = LlavaForConditionalGeneration.from_pretrained(image_model, dtype=torch.float32)
    model = from_pocket(llava, tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():  # no decoder layer an identity, so that each of them counts
        for p in model.model.language_model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return PocketVideo(model, tokenizer).eval()


def test_the_image_models_tokens_keep_their_ids(tokenizer):
    image = make_tokenizer()
    assert {w: i for w, i in tokenizer.get_vocab().items() if i < len(image)} == image.get_vocab()
    for word in WORDS:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1
    assert tokenizer.video_token == VIDEO and len(tokenizer) <= 832
    text = "In which direction does the star move? What disappears at the end, up or down?"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_tower_is_the_image_models_on_a_window_of_its_places(image_model, pocket):
    old = load_file(image_model / "model.safetensors")
    tower = pocket.llava.model.video_tower.state_dict()
    name = "embeddings.position_embedding.weight"
    prefix = next(k for k in old if k.endswith(name)).removesuffix(name)
    for key, value in tower.items():
        if key == name:
            assert torch.equal(value[0], old[prefix + name][0].float())
            assert torch.equal(value[1:], old[prefix + name][1:].float()[window_ids()])
        elif prefix + key in old:
            assert torch.equal(value, old[prefix + key].float()), key
    places = window_ids().view(16, 16)
    assert places[0, 0] == 4 * 24 + 4 and places[-1, -1] == 19 * 24 + 19
    model = pocket.llava.model
    assert tower_digest(model.video_tower) == tower_digest(model.image_tower)


def test_features_are_the_stock_models(pocket, tokenizer):
    """CLS stays among a frame's tokens, before its patches."""
    batch = ClipData(FULL, 0, 0, tokenizer)[0]
    from llava.train.pocket_data import normalize

    pixels = normalize(batch["pixels"].flatten(0, 1))[None]
    with torch.inference_mode():
        ours = pocket.features(batch["pixels"], batch["grid_ids"])
        model = pocket.llava.model
        hidden = model.video_tower(pixels[0], output_hidden_states=True).hidden_states[-2]
        stock = model.multi_modal_projector(hidden)
    assert ours.shape == (1, 2056, stock.shape[-1])
    torch.testing.assert_close(ours[0], stock.flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_packed_questions_get_the_logits_of_the_stock_model(pocket, tokenizer):
    """Each segment by itself through the stock model, from pixels and placeholders."""
    from llava.train.pocket_data import normalize

    batch = ClipData(FULL, 0, 3, tokenizer)[0]
    pixels = normalize(batch["pixels"].flatten(0, 1))[None]
    lm, p = pocket.llava.model.language_model, len(batch["prefix"])
    video = pocket.llava.config.video_token_id
    seg = batch["seg"][0]
    with torch.inference_mode():
        image = pocket.features(batch["pixels"], batch["grid_ids"])
        x = torch.cat(
            [lm.embed_tokens(batch["prefix"])[None], image, lm.embed_tokens(batch["ids"])], 1
        )
        head = torch.arange(p)[None]
        places = batch["places"]
        pos = torch.cat([head, p + places[:, :-1], p + places[:, -1:] + batch["pos"]], 1)
        packed = pocket.llava.lm_head(decoder_states(lm, x, pos, batch["seg"], p + 2056))
        assert int(seg.max()) >= 3
        for s in (0, int(seg.max())):
            own = batch["ids"][0][seg == s]
            ids = torch.cat([batch["prefix"], torch.full((2056,), video), own])[None]
            stock = pocket.llava(input_ids=ids, pixel_values_videos=pixels).logits
            torch.testing.assert_close(
                packed[0, seg == s], stock[0, -len(own) :], atol=1e-3, rtol=1e-3
            )


def test_lessons_are_the_prompts_that_the_evaluation_asks(tokenizer):
    clip = make_clip(1_000_000, 4)
    teacher = ClipTeacher(tokenizer, IGNORE)
    for q in clip_questions(clip, np.random.default_rng(0)):
        conv = conv_templates["vicuna_v1"].copy()
        conv.append_message(conv.roles[0], "<image>\n" + q.prompt)
        conv.append_message(conv.roles[1], None)
        before, after = conv.get_prompt().split("<image>")
        lesson = teacher.lesson(q, clip)
        ask = [i for i, label in zip(lesson.ids, lesson.labels, strict=True) if label == IGNORE]
        assert ask == tokenizer(after, add_special_tokens=False).input_ids
        told = [x for x in lesson.labels if x != IGNORE]
        assert tokenizer.decode(told) == f" {q.answer}</s>"
    assert ClipData(FULL, 0, 0, tokenizer).prefix == tokenizer(before).input_ids


def test_what_is_watched_is_what_the_clip_shows(tokenizer):
    """Through the packing: rows wanted by answers are the region's tokens, CLS counted in."""
    phase = VideoPhase("t", 8, 4, 1, 1, 1, 200, dense=0.0)
    data = ClipData(phase, 0, 5, tokenizer)
    batch = data[0]
    p, visual = len(data.prefix), 4 * 65
    clip = make_clip(1_000_005, 8000, 0, 0, size=112, frames=4, changes=0.8)
    whole = set(clip.patches(clip.actors))
    want = batch["answer/want"][0]
    assert want.any()
    for row in want:
        at = torch.nonzero(row[p : p + visual]).flatten().tolist()
        assert all(k % 65 > 0 for k in at)  # never a CLS
        assert {k // 65 * 64 + k % 65 - 1 for k in at} <= whole
        assert not row[p + visual :].any()
    # Positions of the whole clip, with gaps: frames 0, 2, 5 and 7 of eight.
    frames = batch["places"][0][:-1].view(4, 65)
    assert (frames[:, 0] // 257).tolist() == [0, 2, 5, 7] and batch["places"][0][-1] == 2056
    assert torch.equal(frames[0, 1:] - 1, batch["grid_ids"][0])


def go(run: Path, start: Path, steps: int = 0, seed: int = 0) -> VideoRun:
    """One call of the command, in this process."""
    held = VideoRun(run, "tiny", start, seed, 1e-3)
    args = argparse.Namespace(minutes=1e9, steps=steps, save_minutes=1e9, log_every=1)
    train(held, args)
    return held


def entries(run: Path) -> list[dict]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{k: x for k, x in json.loads(line).items() if "seconds" not in k} for line in lines]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(image_model, tmp_path):
    whole, parts, out = (tmp_path / n for n in ("whole", "parts", "out"))
    export_run(go(whole, image_model), out)
    for _ in range(2):
        go(parts, image_model, steps=5)
    assert entries(whole) == entries(parts) and len(entries(whole)) == 7
    a, b = (load_file(next(f.glob("model-*.safetensors"))) for f in (whole, parts))
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)

    facts = json.loads((out / "TRAINING.json").read_text())
    assert facts["steps"] == 7 and facts["phases"] == {"clips-8-4": 4, "clips-8-8": 3}
    model = Stock.from_pretrained(out, dtype=torch.float32)
    start = LlavaForConditionalGeneration.from_pretrained(image_model, dtype=torch.float32)
    fresh = from_pocket(start, make_video_tokenizer())
    assert tower_digest(model.model.video_tower) == facts["tower_sha256"]
    assert tower_digest(model.model.video_tower) == tower_digest(fresh.model.video_tower)
    assert not torch.equal(model.lm_head.weight, fresh.lm_head.weight)
    with pytest.raises(ValueError, match="another --run folder"):
        go(whole, image_model, seed=1)


def test_what_is_exported_loads_here(pocket, tokenizer, tmp_path):
    from llava.model.builder import load_pretrained_model

    export_video(pocket.llava, tokenizer, tmp_path)
    loaded, model, processor, context = load_pretrained_model(str(tmp_path), None, "v")
    assert model.config.video_seq_length == 2056 and context == 4096
    assert loaded.get_vocab() == AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert processor.size["shortest_edge"] == 224
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]
    said = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    conv = conv_templates["vicuna_v1"].copy()
    conv.append_message(conv.roles[0], VIDEO + "\nWhy?")
    conv.append_message(conv.roles[1], None)
    assert said == conv.get_prompt()
