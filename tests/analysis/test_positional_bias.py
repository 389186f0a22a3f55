"""Positional bias end to end: on a model with uniform attention, on scores with a planted bias, and
where parts of it cannot be known.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig

from analysis import positional_bias
from analysis.position_readings import Shuffled, probe_of, read, show_objects, upside_down
from analysis.positional_bias import compute, findings
from analysis.probe import Probe
from analysis.scores import ENCODER_SCORES, LLM_SCORES
from analysis.setting import open_setting, picture_setting
from llava.eval.errors import EvalError, run_main
from llava.eval.truth import Object, Objects
from tests.visiondrop import models

POCKET = "checkpoints/pocket-llava"


@pytest.fixture(scope="module")
def setting():
    return open_setting(limit=18, batch_size=3)  # three pictures


@pytest.fixture(scope="module")
def even_table():
    """Of the bundled model whose queries are all zero: every row of attention is uniform."""
    even = open_setting(limit=18, batch_size=3)
    with torch.no_grad():
        for name, parameter in even.model.named_parameters():
            if "q_proj" in name:
                parameter.zero_()
    return compute(even, layers=(0, 9), methods=(), controls=3, shuffles=2)


def test_under_uniform_attention_scores_are_what_theory_says(even_table):
    found = findings(even_table)
    for layer in (0, 9):
        visual = found[f"scores/visual@{layer}/first_last_ratio"]
        assert visual == pytest.approx(found[f"scores/uniform@{layer}/first_last_ratio"], rel=1e-3)
        assert visual > 20
        assert found[f"scores/visual@{layer}/uniform_r"] == pytest.approx(1, abs=1e-6)
        assert found[f"scores/visual@{layer}/position_rank"] == pytest.approx(-1, abs=1e-3)
        # The first 64 patches: rows 0 and 1, and two thirds of row 2.
        rows = (24 * 0.5 + 24 * 1.5 + 16 * 2.5) / 64 / 24
        assert found[f"scores/visual@{layer}/kept_centre_y"] == pytest.approx(rows)
        assert found[f"scores/visual@{layer}/kept_lower_half"] == 0
        for name in ("last_text", "all_text", "visual_corrected", "visual_no_mask"):
            for measure in ("first_last_ratio", "token_ratio"):
                assert found[f"scores/{name}@{layer}/{measure}"] == pytest.approx(1, rel=1e-3)
            assert found[f"scores/{name}@{layer}/centre_y"] == pytest.approx(0.5, abs=1e-3)
    for name in ("cls", "patches"):
        assert found[f"scores/{name}@tower/first_last_ratio"] == pytest.approx(1, rel=1e-4)
    line = even_table[(even_table["name"] == "uniform") & (even_table["layer"] == "9")]
    curve = even_table[(even_table["name"] == "visual") & (even_table["layer"] == "9")]
    curve, line = (
        t[(t["measure"] == "by_position") & (t["part"] == "scores")]["mean"].to_numpy()
        for t in (curve, line)
    )
    assert len(curve) == 24 and curve == pytest.approx(line, rel=1e-3)


def test_under_uniform_attention_the_place_alone_decides(even_table):
    found = findings(even_table)
    assert found["flip/visual@9/place_overlap"] == 1
    assert found["flip/visual@9/content_overlap"] == 0
    assert found["flip/visual@9/place_rank"] == pytest.approx(1, abs=1e-3)
    assert found["flip/visual@9/content_rank"] < -0.98
    assert found["grey/visual@9/real_rank"] == pytest.approx(1, abs=1e-3)
    assert found["grey/visual@9/first_last_ratio"] > 20
    assert found["shuffle/visual@9/place_share"] == pytest.approx(1, abs=1e-3)
    assert abs(found["shuffle/visual@9/content_share"]) < 0.1


@pytest.fixture(scope="module")
def planted(setting):
    """Scores that are the place alone, the content alone, and the truth itself."""
    on = {}
    for case in setting.cases:
        mask = torch.zeros(576)
        mask[sorted({p for thing in setting.objects(case).objects for p in thing.patches})] = 1
        on[case.sample.key] = mask

    def bright(view):
        return torch.nn.functional.avg_pool2d(view.pixels.float().mean(1), 14).flatten(1)

    def place(view):
        n = view.hidden.shape[1]
        return torch.arange(1.0, n + 1).expand(view.hidden.shape[0], -1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LLM_SCORES, "place", place)
        patch.setitem(LLM_SCORES, "content", lambda view: view.hidden.norm(dim=-1))
        patch.setitem(ENCODER_SCORES, "bright", bright)
        patch.setitem(ENCODER_SCORES, "true", lambda v: torch.stack([on[k] for k in v.keys]))
        patch.setitem(ENCODER_SCORES, "late", lambda v: torch.arange(576.0).expand(len(v.keys), -1))
        return compute(setting, layers=(0,), methods=(), controls=3, shuffles=3)


def test_planted_scores_are_told_apart_by_each_control(planted):
    found = findings(planted)
    assert found["flip/bright@tower/content_overlap"] == 1
    assert found["flip/bright@tower/content_rank"] == pytest.approx(1)
    assert found["flip/late@tower/place_overlap"] == 1
    assert found["flip/late@tower/content_overlap"] == 0
    neutral = planted[(planted["part"] == "flip") & (planted["measure"] == "place_overlap")]
    assert neutral["neutral"].to_numpy() == pytest.approx(64 / (2 * 576 - 64), abs=0.01)
    # What enters layer 0 is the token alone, wherever it stands.
    assert found["shuffle/content@0/content_share"] == pytest.approx(1, abs=1e-4)
    assert abs(found["shuffle/content@0/place_share"]) < 0.1
    assert found["shuffle/place@0/place_share"] == pytest.approx(1)
    assert abs(found["shuffle/place@0/content_share"]) < 0.1
    assert found["grey/place@0/real_rank"] == pytest.approx(1)
    assert np.isnan(found["grey/bright@tower/real_rank"])  # plain grey is the same everywhere
    assert found["scores/place@0/position_rank"] == pytest.approx(1)
    assert found["scores/place@0/first_last_ratio"] == pytest.approx(29 / 548)
    assert found["scores/late@tower/kept_lower_half"] == 1
    assert found["scores/late@tower/kept_centre_y"] > 0.93


def test_a_score_that_knows_the_truth_finds_it(planted, setting):
    found = findings(planted)
    counts = []
    for case in setting.first_of_pictures:
        things = setting.objects(case).objects
        counts.append(len({p for thing in things for p in thing.patches}))
    assert min(counts) > 64
    assert found["scores/true@tower/precision"] == 1
    assert found["scores/true@tower/recall"] == pytest.approx(np.mean([64 / c for c in counts]))
    row = planted[(planted["name"] == "true") & (planted["measure"] == "precision")].iloc[0]
    assert row["neutral"] == pytest.approx(np.mean(counts) / 576)
    # The whole truth has the centre of mass that the score has.
    for axis in "yx":
        assert found[f"scores/truth/kept_centre_{axis}"] == pytest.approx(
            found[f"scores/true@tower/centre_{axis}"]
        )
    gap = found["scores/late@tower/kept_lower_half"] - found["scores/truth/kept_lower_half"]
    assert found["scores/late@tower/lower_half_gap"] == pytest.approx(gap)
    by_row = planted[(planted["name"] == "truth") & (planted["measure"] == "kept_by_row")]
    score = planted[(planted["name"] == "true") & (planted["measure"] == "by_row")]
    assert by_row["mean"].to_numpy() == pytest.approx(score["mean"].to_numpy())


def test_what_methods_keep_against_their_own_definition(setting):
    table = compute(setting, layers=(0,), methods=("uniform", "visionzip"), controls=0)
    kept = [(2 * i + 1) * 576 // 128 for i in range(64)]
    rows = np.bincount(np.array(kept) // 24, minlength=24) / (64 / 24)
    own = table[(table["part"] == "methods") & (table["name"] == "uniform")]
    by_row = own[own["measure"] == "kept_by_row"]["mean"].to_numpy()
    assert by_row == pytest.approx(rows)
    found = findings(table)
    assert found["methods/uniform/tokens"] == 64 and found["methods/uniform/merged"] == 0
    recalls = []
    for case in setting.first_of_pictures:
        on = {p for thing in setting.objects(case).objects for p in thing.patches}
        recalls.append(len(on & set(kept)) / len(on))
    assert found["methods/uniform/recall"] == pytest.approx(np.mean(recalls))
    # 54 dominant tokens, CLS among them, and 10 merged ones.
    assert found["methods/visionzip/tokens"] == 53 and found["methods/visionzip/merged"] == 10
    assert set(table["part"]) == {"scores", "methods"}


def test_shuffled_tokens_are_those_of_the_stock_model_in_another_order():
    model, images = models.tiny(), models.pixels(2)
    rows = [models.prompt(3, 4, seed=2), models.prompt(3, 4, seed=3)]
    probe = probe_of((0, 5), (), Shuffled, seed=7)
    with probe(model, keys=["a", "b"]), torch.inference_mode():
        out = model(**models.batch(rows), pixel_values=images, logits_to_keep=1)
    readings = [r for r in probe.take() if r.layer == 5]
    orders = [r.identity for r in readings]
    assert all(sorted(order) == list(range(models.PATCHES)) for order in orders)
    assert not np.array_equal(*orders)
    with torch.inference_mode():
        ids = models.batch(rows)["input_ids"]
        embeds = model.get_input_embeddings()(ids)
        features = model.model.get_image_features(images).pooler_output
        for i, order in enumerate(orders):
            embeds[i, ids[i] == models.IMAGE] = features[i][torch.tensor(order)]
        stock = model.model.language_model(inputs_embeds=embeds)
        expected = model.lm_head(stock.last_hidden_state[:, -1:])
    assert torch.allclose(out.logits, expected, atol=1e-4)
    again = probe_of((0, 5), (), Shuffled, seed=7)
    with again(model, keys=["b"]), torch.inference_mode():
        model(**models.batch(rows[1:]), pixel_values=images[1:], logits_to_keep=1)
    assert np.array_equal(again.take()[0].identity, orders[1])


def test_pictures_are_turned_before_they_are_prepared(setting):
    def brightness(view):
        return {"pixels": view.pixels}

    case = setting.cases[:1]
    turned = next(iter(upside_down(setting).walk(Probe(encoder=brightness), case)))
    other = next(iter(setting.walk(Probe(encoder=brightness), case, change=lambda t: t.flip(-2))))
    assert np.allclose(turned.at(None).values["pixels"], other.at(None).values["pixels"])


def test_objects_lie_where_tokens_look(setting):
    rows, columns = np.divmod(np.arange(576), 24)
    places = np.stack([(rows + 0.5) / 24, (columns + 0.5) / 24], 1)
    for case in setting.first_of_pictures:
        things = setting.objects(case)
        expected = sorted({p for thing in things.objects for p in thing.patches})
        assert np.flatnonzero(show_objects(setting, places, things)).tolist() == expected
    # A picture of 28 x 56 pixels, its lower right square an object.
    things = Objects((28, 56), (4, 2), (Object("red ring", (14, 42, 28, 56), (7,)),))
    square = np.array([[(r + 0.5) / 4, (c + 0.5) / 4] for r in range(4) for c in range(4)])

    def seen(aspect, **geometry):
        known = SimpleNamespace(**{"crops": False, "native": False, **geometry})
        config = SimpleNamespace(image_aspect_ratio=aspect)
        fake = SimpleNamespace(geometry=known, model=SimpleNamespace(config=config))
        return np.flatnonzero(show_objects(fake, square, things)).tolist()

    assert seen("pad") == [14]  # 14 pixels of border to the left and to the right
    assert seen("square") == []  # the middle 28 x 28 pixels
    assert seen("anyres", crops=True) == [14, 15]  # the whole picture, squares of 7 x 14 pixels
    nothing = np.array([[np.nan, np.nan], [1.2, 0.9]])
    assert not show_objects(setting, nothing, setting.objects(setting.cases[0])).any()


def siglip(setting):
    """The bundled model's questions, asked of a random model whose tower has no CLS."""
    config = type(setting.model.config).from_dict(setting.model.config.to_dict())
    config.vision_config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=336, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    config.vision_feature_select_strategy = "full"
    model = type(setting.model)(config).eval()
    loaded = dataclasses.replace(setting.loaded, model=model)
    return dataclasses.replace(setting, loaded=loaded)


def test_a_tower_without_cls_and_pictures_without_truth(setting, tmp_path):
    said = []
    table = compute(
        siglip(setting), layers=(1,), methods=("hired", "fastv"), controls=0, console=said.append
    )
    assert any("score cls: this vision tower has no CLS token" in line for line in said)
    assert any(line.startswith("left out: method hired: 'hired' needs") for line in said)
    assert set(table[table["layer"] == "tower"]["name"]) == {"patches"}
    assert set(table[table["part"] == "methods"]["name"]) == {"fastv"}

    for name in sorted(Path("playground/data/eval/textvqa/train_images").glob("*.jpg"))[:2]:
        shutil.copy(name, tmp_path)
    Image.new("RGB", (90, 40), "red").save(tmp_path / "wide.png")
    said.clear()
    own = picture_setting(POCKET, tmp_path, "What is this?", batch_size=3)
    table = compute(own, layers=(8,), methods=("random",), controls=2, console=said.append)
    assert [line.split(":")[1].strip() for line in said] == ["truth"]
    found = findings(table)
    assert "scores/visual@8/recall" not in found and "scores/truth/kept_centre_y" not in found
    assert found["scores/visual@8/first_last_ratio"] > 1
    assert {"flip", "grey", "shuffle", "methods"} < set(table["part"])


def test_any_resolution_pictures(tmp_path):
    data = "playground/data/eval_anyres/textvqa"
    tiles = open_setting("checkpoints/pocket-llava-next", data=data, limit=1, dtype="bfloat16")
    said = []
    table = compute(
        tiles, layers=(8,), methods=("fastv", "visiondrop"), controls=1, console=said.append
    )
    assert [line.split(":")[1].strip() for line in said] == ["method fastv", "shuffle"]
    assert "not reachable" in said[0]  # the full picture before the first drop is too much
    found = findings(table)
    assert found["scores/visual@8/first_last_ratio"] > 1
    assert 0 < found["scores/cls@tower/recall"] < 1
    assert 0 < found["flip/cls@tower/content_overlap"] <= 1
    every = next(iter(read(tiles, probe_of((8,), ("cls",)), tiles.cases[:1], "")))
    llm = next(score for score in every if score.layer == "8")
    tower = next(score for score in every if score.name == "cls")
    # Newlines stand in the sequence and show nothing; the tower's tokens all show a part.
    assert (llm.squares < 0).any() and (tower.squares >= 0).all()
    for measure in ("kept_by_row", "kept_map", "by_position"):
        values = table[(table["name"] == "visual") & (table["measure"] == measure)]["mean"]
        assert values.mean() == pytest.approx(1, abs=0.02)
    positional_bias.plot(table, tmp_path / "f", tiles.geometry.grid)
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_the_command_writes_tables_and_figures(tmp_path, capsys):
    flags = ["--limit", "12", "--layers", "2,8", "--methods", "fastv,uniform", "--controls", "2"]
    argv = [*flags, "--shuffles", "2", "--dtype", "bfloat16", "--name", "figure3"]
    assert positional_bias.main([*argv, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Picture upside down" in printed and "no bias" in printed
    names = ["figure3.csv", "figure3.json", "figure3.pdf", "figure3.png"]
    names += ["figure3_methods.pdf", "figure3_methods.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    facts = json.loads((tmp_path / "figure3.json").read_text())
    assert facts["layers"] == [2, 8] and facts["questions_read"] == 2
    assert "position embeddings" in facts["note"] and facts["dtype"] == "bfloat16"
    table = pd.read_csv(tmp_path / "figure3.csv")
    assert {"scores", "methods", "flip", "grey", "shuffle"} == set(table["part"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "3,99"], "--layers 99: this decoder has layers 0 to 15"),
        (["--tokens", "0"], "--tokens 0: a picture has 576; give 1 to 575"),
        (["--tokens", "576"], "give 1 to 575"),
        (["--methods", "none"], "unknown method 'none'"),
        (["--methods", "visiondrop:causal"], "write name:field=value"),
        (["--methods", "visiondrop:causal=odd"], "causal='odd'"),
        (["--shuffles", "1"], "--shuffles 1 at least 2"),
        (["--layers", "2", "--map-layer", "3"], "--map-layer 3 is not among --layers 2"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, message, tmp_path, capsys):
    argv = ["--limit", "6", "--out", str(tmp_path / "out"), *flags]
    assert run_main(positional_bias.main, argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_layers_that_are_not_there_are_refused_from_python(setting):
    with pytest.raises(EvalError, match="has layers 0 to 15"):
        compute(setting, layers=(-1,))
