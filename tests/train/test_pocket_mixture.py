"""The mixture of all benchmarks' forms: prompts are those of the evaluation, and what is watched is
what the scene says."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from llava.conversation import conv_templates
from llava.train.pocket_data import IGNORE, Phase, PocketData
from llava.train.pocket_forward import decoder_states
from llava.train.pocket_lessons import HARD, Teacher, choose
from llava.train.pocket_loss import Pocket, patch_places
from llava.train.pocket_model import SHAPES, make_model, make_tokenizer
from llava.train.pocket_phases import MIXTURE
from llava.train.pocket_pool import Local
from llava.train.pocket_words import english_words, introduce
from playground.pocket.asking import LETTER, SHORT
from playground.pocket.facts import center
from playground.pocket.pool import scene_of
from playground.pocket.questions import all_questions
from playground.pocket.scene import make_scene
from playground.pocket.sets import FORMS, pope
from tests.train.test_pocket import CHECKPOINT

SQA = (("sqa", 1.0),)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return Teacher(tokenizer, IGNORE)


def some(form, picture=3):
    return FORMS[form](scene_of(picture), np.random.default_rng(picture))


def test_the_shipped_tokenizer_is_the_recipes(tokenizer):
    shipped = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    for form in FORMS:
        for q in some(form)[:20]:
            assert shipped(q.prompt).input_ids == tokenizer(q.prompt).input_ids


def test_words_and_fixed_lines_of_all_forms_are_single_tokens(tokenizer):
    for text in (*english_words(), SHORT, LETTER, "红色", "是什么颜色？"):
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == 1, text
    odd = "Ein Königreich für 一匹马, nearest unanswerable quarters!"
    assert tokenizer.decode(tokenizer(odd, add_special_tokens=False).input_ids) == odd


@pytest.mark.parametrize("form", FORMS)
def test_lessons_are_the_prompts_that_the_evaluation_asks(tokenizer, teacher, form):
    """Token by token, with the picture's placeholder between prefix and lesson."""
    seen = 0
    for q in some(form)[-40:]:
        conv = conv_templates["vicuna_v1"].copy()
        conv.append_message(conv.roles[0], "<image>\n" + q.prompt if q.picture else q.prompt)
        conv.append_message(conv.roles[1], None)
        prompt = tokenizer(conv.get_prompt()).input_ids
        lesson = teacher.of_form(form, q, scene_of(3), True)
        ask = [i for i, label in zip(lesson.ids, lesson.labels, strict=True) if label == IGNORE]
        assert prompt[-len(ask) :] == ask
        told = [x for x in lesson.labels if x != IGNORE]
        assert tokenizer.decode(told) == f" {q.answer}</s>"
        image = tokenizer.convert_tokens_to_ids("<image>")
        before = prompt[: -len(ask)]
        assert (before[-1] == image) == q.picture
        seen += not q.picture
    assert bool(seen) == (form == "sqa")


def test_key_words_look_at_what_they_name_or_at_the_prompt(teacher):
    scene = scene_of(3)
    answers = set()
    for q in pope.asked(scene, np.random.default_rng(0)):
        lesson = teacher.of_form("pope", q, scene, True)
        ((row, wanted),) = lesson.looks["key"]
        assert teacher.names[lesson.ids[row]][1] == q.text.split(" in the")[0].split()[-1]
        shown = [("picture", p) for p in q.evidence] or [("prompt", 0)]
        assert wanted == shown
        assert lesson.looks["answer"][0][1] == shown
        if len(q.text.split()) == 8:  # a colour before it
            assert lesson.looks["bind"] == [(row, [("own", row - 1)])]
        answers.add(q.answer)
    assert answers == {"yes", "no"}


def test_a_denied_statement_has_no_evidence(teacher):
    found = [q for q in some("vqav2") if q.type == "is_color"]
    assert found
    for q in found:
        lesson = teacher.of_form("vqav2", q, scene_of(3), True)
        shown = [("picture", p) for p in q.region] if q.answer == "yes" else [("prompt", 0)]
        assert lesson.looks["answer"][0][1] == shown
        assert lesson.looks["key"][-1][1] == shown


@pytest.mark.parametrize("form", ["mmbench", "mmbench_cn", "seed", "sqa"])
def test_letters_look_back_at_the_right_option(tokenizer, teacher, form):
    for q in some(form)[:25]:
        lesson = teacher.of_form(form, q, scene_of(3), True)
        ((row, wanted),) = lesson.looks["option"]
        assert tokenizer.decode([lesson.ids[row + 1]]) == q.answer
        words = tokenizer.decode([lesson.ids[k] for _, k in wanted]).strip()
        assert words == q.options["ABCDE".index(q.answer)]
        letters = [tokenizer.decode([lesson.ids[w[0][1]]]) for _, w in lesson.looks["letter"]]
        assert letters == list("ABCDE"[: len(q.options)])


def test_places_are_where_the_things_are_on_the_whole_picture(tokenizer, teacher):
    """Of a window, too; and patches have theirs where their positions tell it."""
    scene = make_scene(7, 1, size=(168, 168), origin=(168, 0), few=True)
    told = 0
    for q in pope.asked(scene, np.random.default_rng(0)):
        for row, x, y in teacher.of_form("pope", q, scene, True).places:
            assert row > 0 and x >= 0.5 and y <= 0.5
            shown = [t for t in scene.things if center(t) == (336 * x - 168, 336 * y)]
            assert [t.shape or "sign" for t in shown] == [q.text.split(" in the")[0].split()[-1]]
            told += 1
    assert told > 1
    phase = Phase("t", 12, 8, 1, 1, 200, forms=MIXTURE)
    batches = [PocketData(phase, 0, 0, tokenizer)[i] for i in range(8)]
    gaps = {bool(b["stretch"]): patch_places(b, 144) for b in batches}
    assert (gaps[False][..., 0] == -1).all() and gaps[True][0, 5, 0] == 5
    ids = next(b["grid_ids"] for b in batches if b["stretch"])[0]
    first = next(patch_places(b, 144) for b in batches if b["stretch"])[0]
    torch.testing.assert_close(
        first[:, 1:] * 24 - 0.5, torch.stack([ids % 24, ids // 24], 1).float()
    )


def test_types_and_answers_are_balanced():
    rng = np.random.default_rng(0)
    drawn = [q for i in range(40) for q in choose(some("vqav2", i), 5, rng)]
    plain = [q for q in drawn if q.answer in ("yes", "no")]
    assert 0.4 < sum(q.answer == "yes" for q in plain) / len(plain) < 0.6
    assert sum(q.type.startswith(HARD) for q in drawn) < 0.2 * len(drawn)


def test_questions_without_a_picture_get_the_logits_they_get_alone(tokenizer):
    torch.manual_seed(0)
    model = Pocket(make_model(SHAPES["tiny"], tokenizer), tokenizer)
    lm = model.llava.model.language_model
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = PocketData(Phase("t", 24, 1, 1, 1, 300, forms=SQA), 0, 1, tokenizer)[0]
    prefix, seg, blind = batch["prefix"], batch["seg"][0], batch["blind"][0]
    p, shared = len(prefix), len(prefix) + 576
    with torch.inference_mode():
        image = torch.randn(576, lm.config.hidden_size)
        x = torch.cat([lm.embed_tokens(prefix), image, lm.embed_tokens(batch["ids"][0])])[None]
        places = torch.where(blind, p - 1, shared) + batch["pos"][0]
        pos = torch.cat([torch.arange(shared), places])[None]
        packed = decoder_states(lm, x, pos, seg[None], shared, blind=blind[None], prompt=p - 1)
        seen = set()
        for s in range(int(seg.max()) + 1):
            where = seg == s
            ids = batch["ids"][0][where]
            alone = bool(blind[where][0])
            start = x[0, : p - 1] if alone else x[0, :shared]
            own = torch.cat([start, lm.embed_tokens(ids)])[None]
            stock = lm(inputs_embeds=own, use_cache=False).last_hidden_state[0, -len(ids) :]
            torch.testing.assert_close(packed[0, where], stock, atol=2e-4, rtol=1e-3)
            seen.add(alone)
    assert seen == {True, False}


def test_a_frozen_phase_leaves_the_tower_as_it_is(tokenizer):
    torch.manual_seed(0)
    model = Pocket(make_model(SHAPES["tiny"], tokenizer), tokenizer)
    phase = Phase("t", 12, 1, 2, 2, 200, look=0.3, frozen=True, forms=MIXTURE, spoilt=0.5, few=0.5)
    stats = next(Local(model, tokenizer, False, 0).steps(phase, 0, 0, 0))
    assert stats["loss"] > 0 and stats["look_key"] > 0
    for name, p in model.named_parameters():
        learned = any(part in name for part in ("language_model", "projector", "lm_head"))
        assert (p.grad is not None) == learned, name


def test_new_words_begin_where_the_known_ones_are(tokenizer):
    model = make_model(SHAPES["tiny"], tokenizer)
    introduce(model, tokenizer)
    table = model.model.language_model.embed_tokens.weight

    def one(text):
        return table[tokenizer(text, add_special_tokens=False).input_ids[0]]

    assert torch.equal(one("红色"), one(" red")) and torch.equal(one("圆环"), one(" ring"))
    words = [i for w in SHORT.split() for i in tokenizer(" " + w)["input_ids"][1:]]
    torch.testing.assert_close(one(SHORT), table[words].mean(0))


def test_a_textvqa_lesson_has_the_questions_own_patches(teacher):
    scene, rng = scene_of(3), np.random.default_rng(0)
    for q in all_questions(scene, rng):
        lesson = teacher.textvqa(q, scene, True, False, rng)
        shown = [("picture", p) for p in q.evidence] or [("prompt", 0)]
        assert all(wanted == shown for _, wanted in lesson.looks["answer"])
        assert lesson.looks["key"][-1][1] == shown and lesson.looks["point"]
