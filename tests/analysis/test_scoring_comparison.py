"""The comparison of scores: numbers on answers made by hand, and the command on a tiny model whose
rows are known from elsewhere.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analysis import scoring_comparison
from analysis.scoring_comparison import main, spec_of, table_of
from analysis.scoring_figure import plot
from analysis.scoring_text import grid, reading
from llava.eval import run_benchmark
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.base import Benchmark
from llava.eval.errors import EvalError
from llava.eval.tables.board import Answered, Board, Cell, Row
from llava.eval.tables.scores import VARIANTS
from tests.eval.conftest import tiny_model  # noqa: F401, a fixture

PICTURES = [f"{i // 2}.jpg" for i in range(40)]  # two questions a picture
HALF = [1.0, 0.0] * 20


def cell(who: str, scores: list[list[float]], tokens: int | None, **more: Any) -> Cell:
    label = who if who == "full" else f"score={who}"
    result = {
        "cell": label, "label": label, "tokens": tokens, "mean_tokens": float(tokens or 576),
        "score": 100 * float(np.mean(scores)), "n": 40, "failed": 0, "metric": "accuracy",
        "method_config": {"name": "pyramiddrop", "layers": [1, 8]},
        "ledger": [tokens or 576] * 16, **more,
    }  # fmt: skip
    return Cell(Row(label, tokens, "inside the LLM"), result, scores)


def answered(*cells: Cell, name: str = "gqa") -> Answered:
    out = Answered(name, name.upper(), get_benchmark(name), pictures=PICTURES)
    for one in cells:
        out.cells[one.row.key] = one
    return out


def row_of(table: Any, score: str, asked: float) -> Any:
    found = table[(table["score"] == score) & (table["asked"] == asked)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture(scope="module")
def board() -> Board:
    """At 64 tokens "text" has one of each picture's two questions, "visual" both, "uniform" none,
    "visual_corrected" another half; random's seeds have all, none and none.
    """
    return Board(
        [
            answered(
                cell("full", [[1.0] * 40], None),
                cell("text", [HALF], 64),
                cell("visual", [[1.0] * 40], 64),
                cell("visual_corrected", [[1.0, 1.0, 0.0, 0.0] * 10], 64),
                cell("uniform", [[0.0] * 40], 64),
                cell("random", [[1.0] * 40, [0.0] * 40, [0.0] * 40], 64),
                cell("text", [[1.0] * 40], 192),
                cell("visual", [HALF], 192),
            )
        ]
    )


def test_differences_are_those_of_the_same_questions(board: Board) -> None:
    """Where every picture gains one question of two, any draw of pictures gains 50 points."""
    table = table_of(board)
    expected = {
        ("visual", 64): (100, 50, 50, 50),
        ("uniform", 64): (0, -50, -50, -50),
        ("random", 64): (100 / 3, -50 / 3, -50 / 3, -50 / 3),
        ("visual", 192): (50, -50, -50, -50),
    }
    for (score, asked), numbers in expected.items():
        row = row_of(table, score, asked)
        found = row[["accuracy", "difference", "difference_low", "difference_high"]]
        np.testing.assert_allclose(found.to_numpy(float), numbers, atol=1e-9)
    other = row_of(table, "visual_corrected", 64)
    assert other["difference"] == pytest.approx(0, abs=1e-9)
    # 20 pictures of +-1/2: the interval of a binomial proportion, to a draw or two.
    half_width = 50 * 1.96 / 20**0.5
    assert other["difference_high"] == pytest.approx(half_width, abs=5)
    assert other["difference_low"] == pytest.approx(-half_width, abs=5)
    assert other["low"] < 50 < other["high"] and row_of(table, "random", 64)["seeds"] == 3
    assert table[table["score"].isin(["full", "text"])]["difference"].isna().all()
    assert list(table["score"][:2]) == ["full", "text"] and table["asked"][1] == 192


def test_scores_that_are_no_means_are_made_anew_of_each_draw() -> None:
    """POPE's F1 by a loop; the whole picture sums, not the questions' rightness."""
    benchmark = get_benchmark("pope")
    truth = [True, False] * 20
    said = {"text": [True] * 40, "visual": [True, False] * 19 + [False, False]}
    cells = []
    for score, yes in said.items():
        parts = np.array([[2.0 * (a and b), a + b] for a, b in zip(yes, truth)])
        right = [float(a == b) for a, b in zip(yes, truth)]
        f1 = 100 * parts[:, 0].sum() / parts[:, 1].sum()
        made = cell(score, [right], 64, score=f1, metric="mean F1")
        made.parts.append(parts)
        cells.append(made)
    table = table_of(Board([answered(*cells, name="pope")]))
    text, visual = row_of(table, "text", 64), row_of(table, "visual", 64)
    assert text["accuracy"] == pytest.approx(200 / 3) and benchmark.metric == text["metric"]
    assert text["low"] == pytest.approx(text["high"]) == pytest.approx(200 / 3)
    assert visual["difference"] == pytest.approx(100 * 2 * 19 / 39 - 200 / 3)
    assert visual["difference_low"] <= visual["difference"] <= visual["difference_high"]
    assert visual["difference_high"] == pytest.approx(100 - 200 / 3)


def test_words_say_what_the_intervals_say(board: Board) -> None:
    table = table_of(board)
    shown = grid(table).set_index(["tokens", "score"])["GQA"]
    assert shown["64.0", "visual"] == "100.0 ▲" and shown["192.0", "visual"] == "50.0 ▼"
    assert shown["64.0", "visual, corrected"] == "50.0" and shown["576.0", "all tokens"] == "100.0"
    line = next(line for line in reading(table) if line.startswith("visual:"))
    assert "above the last text token in 1 of 2 cells, surely below in 1" in line
    assert "-50.0 at 192, +50.0 at 64 tokens" in line


def test_figure_shows_every_number(board: Board, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    kept: list[Any] = []
    close = plt.close
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, "close", kept.append)
        paths = plot(table_of(board), tmp_path / "figure")
    above, below = kept[0].axes[:2]
    lines = {line.get_label(): list(line.get_ydata()) for line in above.lines}
    assert lines["visual"] == [100, 50] and lines["text, last token"] == [50, 100]
    assert lines["all tokens"] == [100, 100] and lines["random"] == [pytest.approx(100 / 3)]
    assert len(below.containers) == 4
    close(kept[0])
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    assert Image.open(paths[0]).width > 1000


def flags(model: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("--model-path", str(model), "--benchmarks", "gqa", "--limit", "4", "--tokens", "9"),
        *("--batch-size", "2", "--max-new-tokens", "3", "--workers", "0", "--dtype", "float32"),
        *("--nproc", "0", "--out", str(folder / "out"), "--results", str(folder), *more),
    ]


def answers(folder: Path) -> list[str]:
    lines = (folder / "answers.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines if "text" in json.loads(line)]


def test_command(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its "text" is PyramidDrop by name; an oracle that is told of no region is "uniform"; three
    seeds are drawn; started again it answers nothing.
    """

    def nothing_known(self: Benchmark, samples: Any, files: Any) -> dict[str, list[int]]:
        return {sample.key: [] for sample in samples}

    monkeypatch.setattr(Benchmark, "regions", nothing_known)
    assert main(flags(tiny_model, tmp_path)) == 0
    with (tmp_path / "scoring_comparison.csv").open(newline="") as stream:
        table = {row["score"]: row for row in csv.DictReader(stream)}
    assert list(table) == ["full", *VARIANTS]
    same = [
        *("gqa", "--model-path", str(tiny_model), "--limit", "4", "--tokens", "9"),
        *("--batch-size", "2", "--max-new-tokens", "3", "--workers", "0", "--nproc", "1"),
        *("--dtype", "float32", "--out", str(tmp_path / "same"), "--methods", "pyramiddrop"),
    ]
    assert run_benchmark.main(same) == 0
    out = tmp_path / "out" / "gqa"
    by_name = answers(tmp_path / "same" / "gqa" / "pyramiddrop-9")
    assert answers(out / "pyramiddrop-9+score=text") == by_name
    uniform = answers(out / "pyramiddrop-9+score=uniform")
    assert answers(out / "oracle_pyramid-9+score=oracle") == uniform
    assert answers(out / "pyramiddrop-9+score=visual") != uniform
    assert len(list((out / "pyramiddrop-9+score=random").glob("seed-*"))) == 3
    assert table["random"]["seeds"] == "3" and table["text"]["seeds"] == "1"
    means = {float(row["mean_tokens"]) for score, row in table.items() if score != "full"}
    assert len(means) == 1 and means.pop() == pytest.approx(9, abs=0.5)
    facts = json.loads((tmp_path / "scoring_comparison.json").read_text())
    assert facts["dtype"] == "float32" and facts["batch_size"] == 2
    assert facts["benchmarks"]["gqa"]["questions"] == 4
    text = (tmp_path / "scoring_comparison.md").read_text()
    assert "![accuracy by budget" in text and "float32" in text

    first = (tmp_path / "scoring_comparison.csv").read_text()
    capsys.readouterr()
    assert main(flags(tiny_model, tmp_path)) == 0
    assert "nothing open of 40 answers" in capsys.readouterr().out
    assert (tmp_path / "scoring_comparison.csv").read_text() == first


def test_what_cannot_be_is_told_before_any_compute(tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(EvalError, match="unknown score 'cls'; known are text, all_text"):
        main(flags(tiny_model, tmp_path, "--scores", "text,cls"))
    with pytest.raises(EvalError, match="whole numbers"):
        main(flags(tiny_model, tmp_path, "--tokens", "many"))
    assert not (tmp_path / "out").exists()


def test_without_regions_the_oracle_says_so_and_the_rest_goes_on(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with real data, which says of no question where its answer is."""

    def unknown(self: Benchmark, samples: Any, files: Any) -> dict[str, list[int]]:
        raise EvalError("only the bundled data says which patches a question asks for")

    monkeypatch.setattr(Benchmark, "regions", unknown)
    assert main(flags(tiny_model, tmp_path, "--scores", "text,visual,oracle")) == 0
    facts = json.loads((tmp_path / "scoring_comparison.json").read_text())
    assert facts["not_run"] == [
        "GQA, oracle at 9: only the bundled data says which patches a question asks for"
    ]
    assert spec_of(["oracle"], ["gqa"], [9]).variants[0].asks_regions
    assert scoring_comparison.score_of("score=visual") == "visual"
