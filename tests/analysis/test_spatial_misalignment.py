"""Recall and coverage from end to end, on bundled data and on pictures that nobody knows."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis import spatial_misalignment as spatial
from analysis.setting import Case, open_setting
from llava.eval.errors import EvalError
from llava.eval.samples import Sample


@pytest.fixture(scope="module")
def rows():
    setting = open_setting(benchmark="gqa", limit=None)
    methods = ["visiondrop", "fastv", "uniform", "oracle"]
    return spatial.compute(setting, methods, [64, 32], 6, console=lambda text: None)


def test_the_oracle_keeps_what_is_needed_and_others_their_budget(rows):
    recall = rows["recall"]
    assert set(recall["group"]) == {"relation", "place"}
    oracle = recall.query("method == 'oracle'")
    assert len(oracle) == 6 * 2 * 3
    assert (oracle["region"] == 1).all() and (oracle["complete"] == 1).all()
    layers = recall.query("place == 'layers'")
    # At one budget every method's layers see equally many tokens, CLS and rounding aside.
    assert (layers["patches"] - layers["budget"]).abs().max() <= 1.5
    chance = layers["region_chance"] * 576
    assert np.allclose(chance, layers["patches"])
    assert not len(recall.query("method == 'fastv' and budget == 32"))
    shares = recall[[f"spent_{p}" for p in ("named", "unnamed", "beside", "nothing")]].sum(axis=1)
    assert np.allclose(shares, 1)


def test_recall_is_that_of_counting_in_the_trace(rows):
    setting = open_setting(benchmark="gqa", limit=None)
    entry = rows["recall"].query("method == 'uniform' and budget == 64 and place == 'entry'")
    kept = {(2 * i + 1) * 576 // 128 for i in range(64)}
    cases = {case.sample.key: case for case in setting.cases}
    for row in entry.itertuples():
        case = cases[row.key]
        unnamed = set(case.region) - set(case.named)
        assert unnamed and row.unnamed == pytest.approx(len(unnamed & kept) / len(unnamed))
        if case.named:
            expected = len(set(case.named) & kept) / len(case.named)
            assert row.named == pytest.approx(expected)
        else:
            assert np.isnan(row.named)


def test_coverage_has_one_row_a_picture_where_the_question_is_not_read(rows):
    cover = rows["coverage"].query("place == 'last' and budget == 64")
    pictures = rows["recall"]["scene"].nunique()
    counts = cover.groupby("method").size()
    assert counts["uniform"] == counts["visiondrop"] == pictures
    assert counts["fastv"] == counts["oracle"] == 6
    uniform = cover.query("method == 'uniform'")
    assert uniform["mean"].nunique() == 1
    assert (uniform["mean"] < uniform["mean_random"]).all()
    assert (cover["mean_lattice"] < cover["mean_random"]).all()


def test_summaries_and_findings(rows):
    tables = spatial.summaries(rows)
    assert set(tables["recall"]["group"]) == {"all", "relation", "place"}
    found = spatial.findings(tables)
    gap = rows["recall"].query("method == 'fastv' and place == 'last' and group == 'relation'")
    assert found["gap/relation/last/fastv/64"] == pytest.approx(gap["gap"].mean())
    assert found["unnamed/all/last/oracle/32"] == 1
    assert found["mean/last/uniform/64"] < found["mean_random/last/uniform/64"]
    assert found["gap_low/all/last/fastv/64"] <= found["gap_high/all/last/fastv/64"]


def test_pictures_of_which_nothing_is_known_have_coverage_alone(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, size in enumerate([(300, 150), (120, 200)]):
        noise = np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    args = ["--images", str(folder), "--methods", "visiondrop,uniform,oracle", "--tokens", "64",
            "--out", str(tmp_path / "out")]  # fmt: skip
    assert spatial.main(args) == 0
    said = capsys.readouterr().out
    assert "left out: recall: " in said and "does not say what its pictures show" in said
    assert "left out: oracle at 64" in said
    names = {"spatial_coverage.csv", "spatial_coverage.json", "spatial.png", "spatial.pdf"}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    table = pd.read_csv(tmp_path / "out" / "spatial_coverage.csv")
    uniform = table.query("method == 'uniform' and place == 'entry'").iloc[0]
    # Of a picture on a padded square half or two fifths of the tokens show padding.
    assert uniform["patches"] < 45
    assert uniform["missed"] != uniform["missed"]


def test_any_resolution_pictures(tmp_path):
    setting = open_setting(
        "checkpoints/pocket-llava-next", "gqa", "playground/data/eval_anyres/gqa"
    )
    said = []
    found = spatial.compute(setting, ["visiondrop", "oracle"], [64], 3, console=said.append)
    assert any("oracle at 64: oracle: regions.json names squares" in line for line in said)
    recall = found["recall"]
    assert (recall["named_fine"].fillna(0) <= recall["named"].fillna(0)).all()
    assert (recall["patches"] <= 96).all()
    assert found["coverage"]["mean"].between(0, 0.5).all()


def test_cases_are_spread_over_groups_and_pictures():
    def case(kind, picture, i):
        return Case(Sample(i, f"q{i}", picture), "", kind, (1,), (1,))

    cases = [case("near_color", "a", i) for i in range(10)]
    cases += [case("near_color", "b", 10), case("count", "a", 11), case("count", "c", 12)]
    chosen = spatial.spread(cases, 4)
    assert [c.sample.question_id for c in chosen] == [0, 10, 11, 12]
    assert spatial.spread(cases, None) == cases and spatial.spread(cases, 99) == cases


@pytest.mark.parametrize(
    "args, says",
    [
        (["--data", "somewhere"], "give one --benchmark"),
        (["--groups", "wrong"], "relation, place, counting"),
        (["--methods", "wrong"], "unknown method 'wrong'"),
    ],
)
def test_what_cannot_be_is_refused(args, says, tmp_path):
    with pytest.raises(EvalError, match=says):
        spatial.main([*args, "--limit", "1", "--out", str(tmp_path)])
