"""A table's arithmetic and texts, on scores made by hand."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.loading import ModelChoice
from llava.eval.planning import Refusal
from llava.eval.published import published
from llava.eval.tables import beside, text
from llava.eval.tables.ablation import DEFAULTS, VARIANTS, usual
from llava.eval.tables.beside import find, is_published_model, true_mean, why_not_comparable
from llava.eval.tables.board import Answered, Board, Cell, Row
from llava.eval.tables.estimate import Open, Rates, describe, total_seconds
from llava.eval.tables.figures import Mean, best_two, blind, figures_of, means
from llava.eval.tables.grid import Grid, Text, mean_text, scores_grid
from llava.eval.tables.latex import escape, latex
from llava.eval.tables.presets import PRESETS
from llava.eval.tables.registry import SPECS
from llava.eval.tables.spec import BLANK, SEEDS
from llava.eval.tables.write import Writer
from visiondrop import VisionDrop
from visiondrop.adapters import Geometry
from visiondrop.methods import METHODS

PICTURES = [f"{i // 2}.jpg" for i in range(40)]  # two questions a picture
SPEC = SPECS["table1_llava15"]


def result(label: str, scores: list[list[float]], tokens: int | None, **more: Any) -> dict:
    score = 100 * float(np.mean(scores))
    name = label.partition("+")[0]
    config = {"name": "full"} if label in ("full", BLANK) else {"name": name, "tokens": tokens}
    return {
        "cell": f"{label}-{tokens}", "label": label, "method": name, "method_config": config,
        "tokens": tokens, "budget": None if tokens is None else "average",
        "mean_tokens": 576.0 if tokens is None else float(tokens), "score": score, "n": 40,
        "failed": 0, "metric": "accuracy", "split": "testdev_balanced", "figures": {},
        "types": {}, "flops": None, "kv_bytes": None, "model": "pocket-llava",
        "model_fingerprint": "f", "batch_size": 24, "dtype": "float32", "device": "cpu",
        "attn_implementation": "sdpa", "versions": {"torch": "2", "transformers": "5"},
        "git_commit": "c", **({"spread": 1.0, "seeds": [0, 1, 2]} if len(scores) > 1 else {}),
        **more,
    }  # fmt: skip


def cell(label: str, scores: list[list[float]], tokens: int | None = None, **more: Any) -> Cell:
    place = "control" if label in ("full", BLANK, "random") else "before the LLM"
    return Cell(Row(label, tokens, place), result(label, scores, tokens, **more), scores)


def column(name: str = "gqa", cells: list[Cell] | None = None) -> Answered:
    cells = cells or [
        cell("full", [[1.0] * 32 + [0.0] * 8]),  # 80
        cell(BLANK, [[1.0] * 8 + [0.0] * 32]),  # 20
        cell("visiondrop", [[1.0] * 24 + [0.0] * 16], 64),  # 60
        cell("divprune", [[0.0] * 2 + [1.0] * 30 + [0.0] * 8], 64),  # 75
        cell("scope", [[1.0, 0.0] + [1.0] * 24 + [0.0] * 14], 64),  # 62.5
        cell("random", [[1.0] * 8 + [0.0] * 32] * 3, 64),  # 20
    ]
    benchmark = get_benchmark(name)
    return Answered(
        name, benchmark.title, benchmark, "testdev_balanced", False, PICTURES,
        {c.row.key: c for c in cells},
    )  # fmt: skip


def two_sided_binomial(few: int, n: int) -> float:
    """Of a fair coin: all outcomes that are no likelier than this one."""
    of = [math.comb(n, k) / 2**n for k in range(n + 1)]
    return sum(p for p in of if p <= of[few] * (1 + 1e-9))


def test_relative_scores_and_tests_by_hand() -> None:
    found = figures_of(column())
    shares = {key[0]: share for key, share in found.relative.items()}
    assert shares == pytest.approx(
        {"full": 100, BLANK: 25, "visiondrop": 75, "divprune": 93.75, "scope": 78.125, "random": 25}
    )
    # Questions that one gets right and the other wrong: 8 and 0; 2 and 0; 8 - 1 + 0.
    tests = {key[0]: test for key, test in found.tests.items()}
    assert (tests["visiondrop"].lost, tests["visiondrop"].gained) == (8, 0)
    assert tests["visiondrop"].p == pytest.approx(two_sided_binomial(0, 8)) == 2 / 2**8
    assert tests["divprune"].p == pytest.approx(two_sided_binomial(0, 2)) == 0.5
    assert tests["scope"].p == pytest.approx(two_sided_binomial(0, 7))
    assert "random" not in tests and "full" not in tests, "three seeds have no test"
    graded = figures_of(column(cells=[cell("full", [[0.3] * 40]), cell("uniform", [[1] * 40], 64)]))
    assert not graded.tests, "graded scores have no test"


def test_intervals_draw_pictures() -> None:
    """Two questions a picture that agree: as uncertain as one question a picture, not less."""
    found = figures_of(column()).against_full["visiondrop", 64]
    assert found.difference == pytest.approx(-20) and found.clusters == 20 and found.n == 40
    doubled = column()
    doubled.pictures = [str(i) for i in range(40)]
    single = figures_of(doubled).against_full["visiondrop", 64]
    assert found.high - found.low > 1.3 * (single.high - single.low)


def test_bold_only_where_the_best_is_surely_above_the_second() -> None:
    found = figures_of(column())
    assert not found.best, "75 against 62.5: four pictures of twenty, and one the other way"
    sure = column()
    sure.cells["divprune", 64] = cell("divprune", [[1.0] * 40], 64)
    assert figures_of(sure).best == {("divprune", 64)}
    twins = column()
    for name in ("divprune", "scope"):
        twins.cells[name, 64] = cell(name, [[1.0] * 40], 64)
    assert not figures_of(twins).best, "equals are not above each other"
    assert best_two(column().cells) == [(("divprune", 64), ("scope", 64))]


def test_means_are_over_benchmarks_and_say_of_how_many() -> None:
    other = column("pope", [
        cell("full", [[1.0] * 20 + [0.0] * 20]),
        cell("visiondrop", [[1.0] * 5 + [0.0] * 35], 64),
    ])  # fmt: skip
    board = Board([column(), other])
    figures = {c.name: figures_of(c) for c in board.columns}
    found = means(board, figures)
    assert found["visiondrop", 64] == Mean(pytest.approx((75 + 25) / 2), 2)
    assert found["divprune", 64] == Mean(pytest.approx(93.75), 1)
    assert mean_text(found["divprune", 64], 2) == "93.8 (1 of 2)"
    assert mean_text(found["visiondrop", 64], 2) == "50.0" and mean_text(None, 2) == "-"
    assert blind(board, figures) == []
    board.columns[0].cells[BLANK, None] = cell(BLANK, [[1.0] * 31 + [0.0] * 9])
    figures["gqa"] = figures_of(board.columns[0])
    assert blind(board, figures) == ["GQA"], "blank pictures score as well: nothing to lose"


def test_grid_marks_against_visiondrop_and_tells_what_is_not_there() -> None:
    board = Board([column(), Answered("mme", "MME", reason="MME data not found")])
    board.columns[0].refused.append(
        Refusal("divprune", 32, "divprune: not reachable, least is 36.94 with the first drop")
    )
    board.columns[0].cells["visiondrop", 32] = cell("visiondrop", [[1.0] + [0.0] * 39], 32)
    board.columns[0].cells["divprune", 64] = cell("divprune", [[1.0] * 40], 64)
    figures = {c.name: figures_of(c) for c in board.columns}
    grid = scores_grid(board, figures)
    groups = {name: {row[0].text: row for row in rows} for name, rows in grid.groups}
    assert list(groups) == ["no token dropped by a budget", "64 tokens", "32 tokens"]
    best = groups["64 tokens"]["divprune"][3]
    assert (best.text, best.best, best.mark) == ("100.0", True, "better")
    assert groups["64 tokens"]["random"][3] == Text("20.0 ± 1.0", False, "worse")
    assert groups["64 tokens"]["random"][4].text == "not run"
    assert groups["64 tokens"]["scope"][3].mark == "", "62.5 against 60 is not sure"
    assert list(groups["no token dropped by a budget"])[:2] == ["full", BLANK]
    # A row that is refused stands in the budgets where another column has it.
    told = text.not_run(board)
    assert told[0] == "MME: MME data not found" and "least is 36.94" in told[1]


def test_of_mmbench_rows_are_told_from_questions() -> None:
    made = column("mmbench")
    rows = np.zeros((40, 2))
    rows[:11, 1] = 1  # eleven questions of which every row is answered
    for cell_ in made.cells.values():
        cell_.parts = [rows]
    assert "40 rows (11 questions with all their circular rows)" in text.settings_line(made)
    assert "40 questions" in text.settings_line(column("gqa"))


@pytest.mark.parametrize(
    ("plain", "made"),
    [
        ("a_b & 50 % of #1 {x} $2 ~ ^", r"a\_b \& 50 \% of \#1 \{x\} \$2 \textasciitilde{} "
                                         r"\textasciicircum{}"),
        ("back\\slash", r"back\textbackslash{}slash"),
        ("1.0 ± 0.2 ▲", r"1.0 $\pm$ 0.2 $\uparrow$"),
        ("选", "?"),
    ],
)  # fmt: skip
def test_latex_escapes(plain: str, made: str) -> None:
    assert escape(plain) == made


def test_latex_is_balanced_and_every_row_has_all_columns() -> None:
    nasty = "a_b&c%d#e$f{g}h~i^j\\k"
    rows = [[Text(nasty), Text("x"), Text("1.0", True, "better")]]
    made = latex(Grid(["m_1", "p&l", "50 %"], [("64 tokens", rows)]), "A & B_c 5 %", "t_1")
    assert r"\textbf{1.0}$\uparrow$" in made and r"\label{tab:t-1}" in made
    body = made.split(r"\toprule")[1].split(r"\bottomrule")[0]
    for line in body.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == 2, line
    plain = re.sub(r"\\[&%$#_{}\\]", "", made)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[#~^]", made)
    comments = [line for line in made.splitlines() if re.search(r"(?<!\\)%", line)]
    assert [c[:7] for c in comments] == ["% needs", r"\resize"], "nothing is cut off by a comment"
    for name in ("table*", "tabular"):
        assert made.count(rf"\begin{{{name}}}") == made.count(rf"\end{{{name}}}") == 1


def test_files_of_a_table(tmp_path: Path) -> None:
    board = Board([column(), Answered("mme", "MME", reason="MME data not found")])
    writer = Writer(SPEC, board, tmp_path, "bash scripts/tables/table1_llava15.sh")
    paths = {path.name: path for path in writer.update()}
    with Image.open(paths["table1_llava15.png"]) as image:
        assert image.width > 500 and len(image.convert("L").getcolors(256)) > 10
    lines = {
        (row["benchmark"], row["method"]): row
        for row in csv.DictReader(io.StringIO(paths["table1_llava15.csv"].read_text()))
    }
    row = lines["gqa", "visiondrop"]
    assert float(row["relative"]) == 75 and float(row["difference_full"]) == -20
    assert float(row["low_full"]) < -20 < float(row["high_full"]) < 0
    assert float(row["mcnemar_p"]) == pytest.approx(2 / 2**8, rel=1e-3)
    assert lines["mme", ""]["not_run"] == "MME data not found"
    random = lines["gqa", "random"]
    assert random["spread"] == "1.0000" and random["mcnemar_p"] == ""
    made = paths["table1_llava15.md"].read_text()
    assert "Another model than the one above" in made and "reproduce nobody's number" in made
    assert "61.92 [visiondrop-note]" in made and "medium trust" in made
    assert "first 40 questions, 20 pictures" in made and "batch 24, float32, sdpa" in made
    details = paths["table1_llava15_details.md"].read_text()
    assert "| visiondrop | 64 | 64.0 | 40 | 60.00 | -20.0 [" in details and "| 0.008 |" in details


def test_published_numbers_of_the_bundled_model_are_no_differences() -> None:
    figure = find("visiondrop", "gqa", "llava-v1.5-7b", 192)
    assert figure is not None and (figure.source, figure.value) == ("visiondrop-note", 59.99)
    ours = result("visiondrop", [[1.0]], 192)
    assert "another model" in why_not_comparable(figure, ours, True, False)
    assert why_not_comparable(figure, ours, True, True) == ""
    assert "40 questions" in why_not_comparable(figure, ours, False, True)
    assert "split" in why_not_comparable(figure, {**ours, "split": "val"}, True, True)
    fastv = find("fastv", "gqa", "llava-v1.5-7b", 64)
    assert fastv is not None and true_mean(fastv) == 96
    told = why_not_comparable(fastv, result("fastv", [[1.0]], 64), True, True)
    assert told == "another budget: 64 tokens on average, theirs 96"
    (mmbench,) = published("visiondrop", "mmbench", "llava-v1.5-7b", 192)
    assert "TEST_EN_legacy" in why_not_comparable(mmbench, ours, True, True)
    pope = find("full", "pope", "llava-v1.5-7b", 576)
    assert pope is not None and beside.meaning_of(pope).figure == "accuracy", "as the paper's"


def test_a_checkpoint_is_known_by_name_and_sizes(tiny_model: Path, tmp_path: Path) -> None:
    assert not is_published_model(ModelChoice(str(tiny_model)), "llava-v1.5-7b")
    named = tmp_path / "llava-v1.5-7b"
    named.symlink_to(tiny_model)
    assert not is_published_model(ModelChoice(str(named)), "llava-v1.5-7b"), "a name is not enough"


def test_estimate() -> None:
    rates = Rates.from_results([
        {"mean_tokens": 576.0, "samples_per_second": 10},
        {"mean_tokens": 64.0, "samples_per_second": 50},
        {"mean_tokens": None, "samples_per_second": 3},
    ])  # fmt: skip
    assert rates.seconds(576) == pytest.approx(0.1) and rates.seconds(64) == pytest.approx(0.02)
    assert rates.seconds(320) == pytest.approx(0.06)
    assert Rates(((64.0, 0.5),)).seconds(576) == 0.5
    cells = [Open(100, 576), Open(0, 64), Open(50, 64)]
    assert total_seconds(cells, rates, 2) == pytest.approx((10 + 1) / 2)
    told = describe(cells, 200, rates, 2)
    assert told.startswith("150 of 200 answers open, in 2 cells") and told.endswith("6 s")
    assert "nothing open" in describe([Open(0, 64)], 200, rates, 2)


def test_ablations_change_one_thing_at_the_same_mean() -> None:
    geometry = Geometry(num_layers=16, num_patches=576, has_cls=True, grid=(24, 24))
    base = usual(64, geometry)
    assert base == VisionDrop.from_average(64, num_layers=16)
    assert {v.group for v in VARIANTS} == set(DEFAULTS)
    assert len({v.slug for v in VARIANTS}) == len(VARIANTS)
    for variant in VARIANTS:
        for tokens in (192, 64):
            method = variant.build(tokens, geometry)
            method.check(geometry)
            assert method.mean_tokens(16) == pytest.approx(tokens, abs=0.5), variant.slug
            assert method != usual(tokens, geometry), variant.slug
    fields = {v.slug: v.build(64, geometry) for v in VARIANTS}
    assert fields["contextual=0.5"].encoder == (48, 48) and fields["entry=2"].encoder == (112, 16)
    assert not fields["stages=before"].llm and fields["stages=inside"].encoder is None
    assert len(fields["stages=inside"].llm) == 1
    for name in ("merge=mean", "positions=original", "causal=visible", "query=patches"):
        key, _, value = name.partition("=")
        assert getattr(fields[name], key) == value and fields[name].llm == base.llm


def test_specifications_name_what_there_is() -> None:
    for spec in SPECS.values():
        assert Path(spec.script.split()[1]).is_file()
        assert set(spec.first) - {BLANK} <= set(METHODS)
        quick = spec.quickly()
        assert len(quick.tokens) <= 2 and len(quick.first) <= 6 and not quick.rest
        for name in spec.benchmarks:
            get_benchmark(name)
    assert len(SPEC.benchmarks) == 9 and SPEC.tokens == (192, 128, 64, 32)
    assert SEEDS == (0, 1, 2)


def test_efficiency_counts_as_the_paper_does() -> None:
    from llava.eval.tables.efficiency import count

    llava, following = PRESETS[:2]
    for preset, method, tokens, printed in (
        (llava, "full", None, 9.06),
        (llava, "visiondrop", 64, 2.11),
        (following, "full", None, 46.25),
        (following, "visiondrop", 320, 7.70),
    ):
        made = count(preset, method, tokens)
        assert made.like_paper == pytest.approx(printed * 1e12, rel=0.01)
        assert made.mean == pytest.approx(tokens or preset.patches, abs=0.5)
    refused = count(llava, "fastv", 16)
    assert refused.flops is None and "not reachable" in refused.reason
    assert count(llava, "globalcom2", 64).reason, "needs crops"
