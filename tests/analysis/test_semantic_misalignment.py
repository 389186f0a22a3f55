"""Text queries against regions: planted scores, planted questions, and the whole command."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from analysis import attention_maps
from analysis.overlap import expected_iou, overlap, top
from analysis.semantic_figure import choose_pair
from analysis.semantic_misalignment import compute, findings, main
from analysis.semantic_tables import mixing_table, overlap_table, questions_table
from analysis.semantic_walk import ASKED, OBJECT, SCORES, Seen, see, text_states
from analysis.setting import Case, Unknown, open_setting
from llava.eval.errors import EvalError
from llava.eval.samples import Sample
from tests.eval.conftest import make_tokenizer, write_data
from tests.visiondrop.models import randomise

TOTAL, LAYERS, TOKENS = 50, (0, 5), 8


def planted(picture, number, region, scores, cls=None):
    """What a walk would have seen of a question whose scores [L, S, n] are known."""
    wanted = np.isin(np.arange(TOTAL), region)
    question = f"question {number} of {picture}"
    case = Case(Sample(picture, question, picture, line=number), question, "k", tuple(region))
    encoder = None if cls is None else overlap(cls, wanted, TOKENS)
    found = overlap(scores, wanted, TOKENS)
    tops = top(scores, TOKENS)
    return Seen(case, TOTAL, np.array(region), found, encoder, tops, {}, np.zeros(len(LAYERS)))


def cases(rng, finds):
    """12 pictures with two questions each; `finds` gives scores [L, S, n] of a region."""
    out = []
    for p in range(12):
        regions = rng.permutation(TOTAL)[:8].reshape(2, 4)
        out += [
            planted(f"p{p}", i, r, finds(p, r), cls=finds(p, r)[0, 0])
            for i, r in enumerate(regions)
        ]
    return out


def value(table, **equal):
    for column, wanted in equal.items():
        table = table[table[column].isna() if wanted is None else table[column] == wanted]
    assert len(table) == 1, equal
    return table.iloc[0]


def test_an_oracle_a_lost_query_and_a_random_score_by_layer():
    """last_text finds regions in layer 0 and is lost in layer 5; all_text is the oracle."""
    rng = np.random.default_rng(0)

    def finds(p, region):
        scores = rng.random((len(LAYERS), len(SCORES), TOTAL))
        scores[0, 0, region] += 2
        scores[:, 1, region] += 2
        return scores

    table = overlap_table(cases(rng, finds), LAYERS, TOKENS)
    for measure in ("auc", "recall", "precision", "iou"):
        for layer in LAYERS:
            found = value(
                table, part="overlap", measure=measure, layer=layer, score="all_text", kind="all"
            )
            assert (found["mean"], found["low"], found["high"]) == (1, 1, 1)
    lost = value(table, part="overlap", measure="auc", layer=5, score="last_text", kind="all")
    assert lost["low"] < 0.5 < lost["high"] and (lost["n"], lost["pictures"]) == (24, 12)
    trend = value(table, part="late_minus_early", measure="auc", score="last_text")
    assert trend["mean"] == pytest.approx(lost["mean"] - 1) and trend["high"] < 0
    luck = value(table, part="overlap", measure="iou", score="random", kind="all")
    assert luck["mean"] == pytest.approx(expected_iou(4, 4, TOTAL))
    ahead = value(table, part="text_minus_visual", measure="auc", layer=0, score="all_text")
    corrected = value(
        table, part="overlap", measure="auc", layer=0, score="visual_corrected", kind="all"
    )
    assert ahead["mean"] == pytest.approx(1 - corrected["mean"])
    assert value(table, part="overlap", measure="auc", score="cls", kind="k")["mean"] == 1
    assert findings(table)["auc_last_text_best_layer"] == 0


def test_two_questions_share_tokens_as_planted():
    rng = np.random.default_rng(1)
    fixed = rng.random((12, len(LAYERS), len(SCORES), TOTAL))

    def finds(p, region):
        scores = fixed[p].copy()
        scores[:, 0] = rng.random((len(LAYERS), TOTAL))
        scores[:, 0, region] += 2  # other tokens at random
        return scores

    seen = cases(rng, finds)
    table = questions_table(seen, LAYERS)
    same = dict(part="questions", measure="same", kind="apart")
    assert value(table, layer=0, score="visual", **same)["mean"] == 1
    assert value(table, layer=0, score="last_text", **same)["mean"] < 0.4
    assert value(table, score="asked", **same)["mean"] == 0
    luck = value(table, score="random", **same)["mean"]
    assert luck == pytest.approx(expected_iou(TOKENS, TOKENS, TOTAL))
    recall = {
        m: value(table, measure=m, layer=5, score="last_text")["mean"]
        for m in ("own", "other", "selective")
    }
    assert recall["own"] == 1 and recall["other"] < 0.3
    assert recall["selective"] == pytest.approx(1 - recall["other"])
    for m in ("own", "other"):
        assert value(table, measure=m, layer=5, score="visual")["mean"] < 0.5
    assert value(table, measure="selective", layer=5, score="visual")["mean"] == 0
    with pytest.raises(Unknown, match="no picture here has two questions"):
        questions_table(seen[::2], LAYERS)


def test_the_pair_shown_lies_far_apart():
    regions = [(0, 1), (1, 2), (25, 26), (575,)]
    asked = [
        Case(Sample("p", f"q{i}", "p", line=i), f"q{i}", "k", r, grid=(24, 24))
        for i, r in enumerate(regions)
    ]
    assert [c.question for c in choose_pair(asked)] == ["q0", "q3"]
    unknown = [Case(c.sample, c.question) for c in asked]
    assert [c.question for c in choose_pair(unknown, "p")] == ["q0", "q1"]
    with pytest.raises(EvalError, match="no question is about 'x'; there are p"):
        choose_pair(asked, "x")
    with pytest.raises(Unknown, match="apart"):
        choose_pair(asked[:2])


def test_visual_states_know_nothing_of_the_question_and_text_states_of_the_picture():
    """What causality and the input say: exactly so, whatever the weights."""
    setting = open_setting(limit=12, dtype="float32", batch_size=5)
    seen = see(setting, (0, 9), 64, 4, 0)
    table = questions_table(seen, (0, 9))
    for layer in (0, 9):
        for score in ("visual", "visual_corrected"):
            for kind in ("all", "apart"):
                where = dict(measure="same", layer=layer, score=score, kind=kind)
                assert value(table, **where)["mean"] == 1
    same_picture = [s for s in seen if s.case.picture == seen[0].case.picture]
    for one in same_picture[1:]:
        assert np.allclose(one.pooled["visual"], same_picture[0].pooled["visual"], atol=1e-4)
    for one, grey in zip(seen, text_states(setting, (0, 9), 0)):
        # Layer 0 reads embeddings, the same behind any picture; later layers have seen it.
        assert np.array_equal(one.pooled["text"][0], grey["text"][0])
        assert np.abs(one.pooled["last"][1] - grey["last"][1]).max() > 0.1
    kinds = np.concatenate([s.roles for s in seen])
    assert (kinds == ASKED).any() and (kinds == OBJECT).any()
    first = seen[0]
    assert first.states.shape == (2, len(first.roles), 160) and len(first.roles) == 12
    again = see(setting, (0, 9), 64, 4, 0, setting.cases[:1])[0]
    assert np.allclose(again.states, first.states, atol=2e-2)  # the same tokens in another batch


def test_questions_on_one_picture_in_tiles_share_its_cls():
    data = "playground/data/eval_anyres/textvqa"
    setting = open_setting("checkpoints/pocket-llava-next", data=data, limit=2, batch_size=2)
    first, second = see(setting, (0,), 64, 4, 0)
    assert first.case.picture == second.case.picture
    for one in (first, second):
        assert one.encoder is not None and 0 < one.encoder[0] < 1
        assert one.total > 1000 and len(one.asked) >= len(one.case.region)


def mixed(rng, share):
    """24 questions on 12 pictures whose asked tokens hold so much of the text's state by layer."""
    out = []
    for i in range(24):
        text, own, rest = rng.normal(size=(3, 10))
        asked = np.stack([s * text + (1 - s) * own for s in share])
        both = [np.repeat(x[None], len(share), 0) for x in (text, rest)]
        roles = np.repeat([0, 1, 2], 4)
        states = rng.normal(size=(len(share), 12, 10))
        states[-1, :, 0] += 10.0 * (roles > 0)  # the last layer tells objects apart
        pooled = {
            "text": both[0],
            "last": both[0],
            "asked": asked,
            "rest": both[1],
            "visual": asked,
        }
        case = Case(Sample(f"p{i // 2}", f"q{i}", f"p{i // 2}", line=i), f"q{i}", "k", (1,))
        cosine = np.zeros(len(share))
        out.append(
            Seen(
                case,
                50,
                np.array([1]),
                None,
                None,
                np.zeros((1, 1, 1)),
                pooled,
                cosine,
                roles,
                states,
            )
        )
    return out


def test_planted_mixing_is_measured_and_none_is_not():
    share, layers = (0.0, 0.4, 0.7, 1.0), (0, 1, 2, 3)
    seen = mixed(np.random.default_rng(2), share)
    grey = [{"text": s.pooled["text"], "last": -s.pooled["last"]} for s in seen]
    table = mixing_table(seen, layers, grey, 0)
    asked = [
        value(table, measure="cka", score="asked", kind="text", layer=i)["mean"] for i in layers
    ]
    assert abs(asked[0]) < 0.3 and asked == sorted(asked) and asked[-1] == pytest.approx(1)
    rest = value(table, measure="cka", score="rest", kind="text", layer=3)
    assert rest["low"] < 0 < rest["high"]
    assert value(table, measure="moved", kind="text", layer=2)["mean"] == 0
    assert value(table, measure="moved", kind="last", layer=2)["mean"] == pytest.approx(2)
    readers = {
        (name, i): value(table, measure="reader", score=name, layer=i)["mean"]
        for name in ("object", "asked", "asked_with_text")
        for i in (0, 3)
    }
    assert readers.pop(("object", 3)) > 0.99
    assert all(0.35 < area < 0.65 for area in readers.values()), readers


@pytest.fixture(scope="session")
def siglip(tmp_path_factory):
    """A tiny LLaVA without CLS."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            image_size=84, patch_size=14, vision_use_head=False,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer) + 1, hidden_size=32, intermediate_size=48,
            num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=512,
            bos_token_id=1, eos_token_id=2, pad_token_id=3,
        ),
        image_token_index=len(tokenizer), vision_feature_select_strategy="full",
        image_seq_length=36,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    randomise(model)
    model.generation_config.pad_token_id = 3
    folder = tmp_path_factory.mktemp("model") / "tiny-llava-siglip"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}
    ).save_pretrained(folder)
    return folder


def test_pictures_of_ones_own_and_a_tower_without_cls(siglip, tmp_path, capsys):
    data = write_data(tmp_path / "data")
    where = ["--images", str(data.images), "--model-path", str(siglip), "--tokens", "9"]
    assert main([*where, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "left out: overlap: nobody knows which regions" in said
    assert "left out: questions: no picture here has two questions" in said
    table = pd.read_csv(tmp_path / "out" / "semantic_misalignment.csv")
    assert set(table["part"]) == {"mixing"} and set(table["measure"]) == {"cka", "cosine", "moved"}
    assert set(table[table["measure"] == "cka"]["score"]) == {"visual"}
    moved = table[(table["measure"] == "moved") & (table["kind"] == "last")]
    assert moved["mean"].iloc[0] == 0 and (moved["mean"].iloc[1:] > 0).all()


def test_questions_whose_regions_nobody_knows(siglip, tmp_path, capsys):
    data = write_data(tmp_path / "data")
    (data.folder / "regions.json").unlink()
    where = ["--data", str(data.folder), "--model-path", str(siglip), "--tokens", "9"]
    assert main([*where, "--layers", "1,3", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "left out: overlap" in said and "left out: CLS" in said
    assert "left out: questions" not in said and "left out: mixing" not in said
    table = pd.read_csv(tmp_path / "out" / "semantic_misalignment.csv")
    same = table[(table["part"] == "questions") & (table["score"] == "visual")]
    assert (same["mean"] == 1).all() and set(same["layer"]) == {1, 3}


def test_attention_of_pictures_of_ones_own(siglip, tmp_path):
    data = write_data(tmp_path / "data")
    where = ["--images", str(data.images), "--model-path", str(siglip), "--heads", "1,2"]
    assert attention_maps.main([*where, "--layers", "3", "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "attention_maps.csv")
    assert len(table) == 3 * 2 * 2 * 36 and set(table["head"]) == {1, 2}
    with pytest.raises(Unknown, match="nobody knows which regions"):
        attention_maps.main([*where, "--image-from", "region", "--out", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_the_command_writes_everything_of_the_bundled_model(tmp_path, capsys):
    status = main(
        ["--limit", "30", "--layers", "10", "--shown-layers", "10", "--dtype", "bfloat16"]
        + ["--out", str(tmp_path), "--stem", "figure4"]
    )
    assert status == 0 and "left out" not in capsys.readouterr().out
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["figure4.csv", "figure4.json", "figure4.pdf", "figure4.png"]
    table = pd.read_csv(tmp_path / "figure4.csv")
    keys = ["part", "measure", "layer", "score", "kind"]
    assert not table.duplicated(keys).any()
    areas = table[(table["part"] == "overlap") & (table["measure"] == "auc")]
    assert areas["mean"].between(0, 1).all()
    assert set(areas["score"]) == {*SCORES, "cls", "random"}
    about = json.loads((tmp_path / "figure4.json").read_text())
    assert about["findings"]["auc_random"] == 0.5 and about["dtype"] == "bfloat16"


def test_what_cannot_be_is_refused_before_any_compute():
    setting = open_setting(limit=2, dtype="float32")
    with pytest.raises(EvalError, match="layers .16.: this decoder has 0 to 15"):
        compute(setting, [16])
    with pytest.raises(EvalError, match="--tokens 576: a picture has 576"):
        compute(setting, [1], 576)
