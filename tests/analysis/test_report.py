"""Intervals and files of tables."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis import plots, report
from analysis.cli import layer_list, parts
from analysis.setting import Unknown
from llava.eval.errors import EvalError


def test_a_mean_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        effects = rng.normal(0, 1, 30)  # pictures; 4 questions each share their picture's effect
        values = np.repeat(effects, 4) + rng.normal(0, 0.2, 120) + 2.0
        found = report.mean_interval(values, np.repeat(np.arange(30), 4), resamples=400)
        assert found.difference == pytest.approx(values.mean())
        hits += found.low <= 2.0 <= found.high
    assert 85 <= hits <= 100


def test_a_mean_interval_leaves_out_what_is_not_known():
    found = report.mean_interval([1.0, float("nan"), 3.0], ["a", "b", "c"])
    assert (found.difference, found.n, found.clusters) == (2.0, 2, 2)
    alone = report.mean_interval([1.0], ["a"])
    assert alone.difference == 1.0 and np.isnan(alone.low)
    assert report.mean_interval([], []).n == 0


def test_tables_are_written_with_what_they_depend_on(tmp_path):
    table = pd.DataFrame({"layer": [1, 2], "value": [0.123456789, np.nan]})
    csv, facts = report.write(table, tmp_path / "deep" / "t", {"dtype": "bfloat16"})
    assert csv.read_text() == "layer,value\n1,0.123457\n2,\n"
    assert json.loads(facts.read_text())["dtype"] == "bfloat16"
    assert pd.read_csv(csv).shape == (2, 2)


def test_parts_that_cannot_run_say_so_and_the_others_do():
    said = []

    def cannot():
        raise Unknown("no regions")

    assert parts({"a": cannot, "b": lambda: 3}, said.append) == {"b": 3}
    assert said == ["left out: a: no regions"]
    with pytest.raises(EvalError, match="nothing of this analysis can run here: a: no regions"):
        parts({"a": cannot}, said.append)


def test_layers_are_read():
    assert layer_list("8, 1,15,1") == (1, 8, 15)
    with pytest.raises(Exception, match="whole numbers"):
        layer_list("1,x")


def test_a_figure_is_written_as_png_and_pdf_and_the_same_each_time(tmp_path):
    def draw(stem):
        with plots.figure(1, 2, figsize=(plots.COLUMN, 1.6)) as (drawn, axes):
            axes[0].imshow(np.zeros((3, 4)), cmap=plots.HEAT)
            plots.outline(axes[0], [0, 1, 5], (3, 4))
            assert len(axes[0].lines) == 8  # the border of an L of three squares
            look = plots.look_of("visual")
            axes[1].plot([0, 1], [1, 0], color=look.color, marker=look.marker)
            return plots.save(drawn, stem)

    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    assert [p.suffix for p in first] == [".png", ".pdf"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]


def test_looks_differ_without_colour():
    names = ("last_text", "all_text", "visual", "visual_corrected", "visual_no_mask", "cls")
    names = (*names, "patches", "random", "uniform")
    assert len({plots.look_of(name).marker for name in names}) == len(names)
    assert len({plots.look_of(name).hatch for name in names}) == len(names)


def test_tables_and_pictures_go_to_wandb(tmp_path, monkeypatch):
    """Offline: what would be uploaded is in the run's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with plots.figure(figsize=(1, 1)) as (drawn, _):
        paths = plots.save(drawn, tmp_path / "one")
    table = pd.DataFrame({"layer": ["1", "tower"], "value": [0.5, np.nan]})
    said = report.log("bias", {"limit": 3}, {"t": table}, paths, tmp_path)
    assert "bias" in said and "offline" in said
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    names = [path.name for path in run.rglob("*") if path.is_file()]
    assert any(name.startswith("one_") and name.endswith(".png") for name in names)
    assert any(name.startswith("t_") and name.endswith(".table.json") for name in names)
    assert any(name.endswith(".wandb") for name in names)
