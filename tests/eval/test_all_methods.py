"""`--methods all`, presets, nominal budgets: what runs, what does not, and what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llava.eval.errors import EvalError, run_main
from llava.eval.eval_textvqa import question_of
from llava.eval.planning import Refusal, plan_runs
from llava.eval.run_benchmark import main
from llava.eval.samples import raw_question, read_questions
from llava.eval.table import markdown_table, notes
from tests.eval.conftest import TinyData
from tests.eval.test_run_benchmark import flags, result
from visiondrop import Reducer, reducer
from visiondrop.adapters import Geometry
from visiondrop.methods import METHODS, Uniform
from visiondrop.methods.base import PictureBudget

GEOMETRY = Geometry(num_layers=8, num_patches=36, has_cls=True, grid=(6, 6))


@dataclass
class Late(Reducer):
    """Drops the last tokens before one layer inside the LLM; its first drop moves forward."""

    name = "late"
    inside_llm = True
    presets = {"kept4": {"layer": 2, "kept": 4}}

    layer: int = 4
    kept: int = 4

    @classmethod
    def from_average(cls, tokens, *, num_layers, num_patches=576, has_cls=True, **options):
        for layer in range(options.pop("layer", 4), 0, -1):
            kept = (tokens * num_layers - layer * num_patches) // (num_layers - layer)
            if kept >= 1:
                return cls(layer, int(kept), **options)
        least = (num_patches + num_layers - 1) / num_layers
        raise ValueError(f"late: an average of {tokens} is not reachable, least is {least:.2f}")

    @classmethod
    def from_nominal(cls, tokens, **sizes):
        return cls(4, tokens)

    def ledger(self, num_layers, num_patches=576, has_cls=True):
        return [num_patches] * self.layer + [self.kept] * (num_layers - self.layer)

    def llm_layers(self):
        return (self.layer,)

    def llm_stage(self, view):
        from visiondrop.merging import keep_only

        kept = view.sizes.new_tensor(range(self.kept)).expand(view.hidden.shape[0], -1)
        return keep_only(view.hidden, view.sizes, kept)


@dataclass
class Reader(PictureBudget):
    """Writes down the questions that it gets to see; keeps the first tokens."""

    name = "reader"
    before = "projected"
    reads_questions = True
    seen = []

    tokens: int = 9

    def projected_stage(self, view):
        from visiondrop.merging import keep_only

        Reader.seen += view.questions
        kept = view.sizes.new_tensor(range(self.tokens)).expand(view.features.shape[0], -1)
        return keep_only(view.features, view.sizes, kept)


@dataclass
class Films(PictureBudget):
    """Needs several frames."""

    name = "films"
    needs = ("frames",)
    tokens: int = 9


@dataclass
class Surprised(PictureBudget):
    """Finds out only at work that it cannot run."""

    name = "surprised"
    tokens: int = 9

    def encoder_stage(self, view):
        raise ValueError("no text encoder beside this checkpoint")


@dataclass
class Marks(Reducer):
    """Drops nothing and has no budget."""

    name = "marks"


@dataclass
class Boxes(Reducer):
    """Drops what it is told to, which is nothing as it stands."""

    name = "boxes"
    before_llm = True
    dropped: int = 0

    def ledger(self, num_layers, num_patches=576, has_cls=True):
        return [num_patches - self.dropped] * num_layers


CLASSES = (METHODS["full"], Uniform, Late, Films, Surprised, Marks, Boxes, Reader)
TOYS = {cls.name: cls for cls in CLASSES}


for _name in set(TOYS) - set(METHODS):
    reducer._REGISTRY.pop(_name)  # other tests must not meet them


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry of toys, so that these tests stay quick however many methods there are."""
    kept = dict(METHODS)  # other tests ask for its order, too
    METHODS.clear()
    METHODS.update(TOYS)
    for name, cls in TOYS.items():
        monkeypatch.setitem(reducer._REGISTRY, name, cls)
    yield
    METHODS.clear()
    METHODS.update(kept)


def plan(names: str, tokens: list[int], **more: Any) -> tuple[list[str], list[Refusal]]:
    refused: list[Refusal] = []
    lacks = {"frames": "one picture each"}
    runs = plan_runs(names.split(","), tokens, [0], GEOMETRY, refused=refused, lacks=lacks, **more)
    return [run.cell for run in runs], refused


def test_all_takes_every_method_and_puts_the_reasons_of_others_aside() -> None:
    cells, refused = plan("all", [9, 3])
    assert cells == [
        *("full-36", "uniform-9", "uniform-3", "late-9", "surprised-9", "surprised-3"),
        *("marks-36", "reader-9", "reader-3"),
    ]
    assert [(r.name, r.tokens) for r in refused] == [
        *(("late", 3), ("films", 9), ("films", 3), ("boxes", None)),
    ]
    assert refused[0].cell == "not reachable, least is 5.38"
    assert notes(refused) == [
        "not run: late at 3: late: an average of 3 is not reachable, least is 5.38",
        "not run: films at 9, 3: films needs frames; one picture each",
        "not run: boxes: boxes keeps every token as it is by default; set its fields with "
        "--method-arg, or in Python",
    ]
    assert plan("all", [9], method_args={"dropped": "4"})[0][-2] == "boxes-32+dropped=4"


def test_named_explicitly_it_is_an_error() -> None:
    for names, tokens, says in (
        ("late", 3, "not reachable, least is 5.38"),
        ("films", 9, "films needs frames; one picture each"),
        ("all,late", 3, "not reachable"),
        ("late@kept5", 9, "late has no preset 'kept5'; it has: kept4"),
    ):
        with pytest.raises(EvalError, match=says):
            plan(names, [tokens])


def test_presets_hold_their_budget_and_go_with_all() -> None:
    cells, _ = plan("all,late@kept4", [9])
    assert "late@kept4-12" in cells, "36 for two layers, 4 for six: 12 on average"
    (run,) = plan_runs(["late@kept4"], [], [0], GEOMETRY)
    assert run.method == Late(2, 4) and run.ledger == (36, 36, 4, 4, 4, 4, 4, 4)
    assert run.budget is None and run.label == "late@kept4"


def test_a_first_drop_that_moved_forward_is_told() -> None:
    runs = {n: plan_runs(["late"], [n], [0], GEOMETRY)[0] for n in (24, 9)}
    assert (runs[24].method, runs[24].moved) == (Late(4, 12), ())
    assert (runs[9].method, runs[9].moved) == (Late(1, 5), (1,))


def test_defaults_reach_methods_that_have_such_a_field_and_leave_the_name_alone() -> None:
    """As the bundled model's CLIP does; what the user gives wins and stands in the name."""
    known = {"defaults": {"dropped": "4", "clip": "x"}}
    (run,) = plan_runs(["boxes"], [], [0], GEOMETRY, **known)
    assert (run.method, run.cell) == (Boxes(4), "boxes-32")
    (run,) = plan_runs(["boxes"], [], [0], GEOMETRY, {"dropped": "6"}, **known)
    assert (run.method, run.cell) == (Boxes(6), "boxes-30+dropped=6")
    (run,) = plan_runs(["late"], [9], [0], GEOMETRY, **known)
    assert run.method == Late(1, 5)


def test_nominal_budgets_lie_in_folders_of_their_own() -> None:
    (run,) = plan_runs(["late"], [4], [0], GEOMETRY, budget="nominal")
    assert run.cell == "late-4+budget=nominal" and run.method == Late(4, 4)
    assert sum(run.ledger) / 8 == 20, "what the table's other column says"


def test_one_table_of_all(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command: everything runs that can, the rest is told with its reason, nothing crashes."""
    Reader.seen.clear()
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "all,late@kept4")
    args[args.index("--tokens") + 1] = "9,3"
    assert main([*args, "--limit", "6", "--reference", "uniform"]) == 0
    out = tmp_path / "textvqa"
    printed = capsys.readouterr().out
    for reason in (
        "not run: late at 3: late: an average of 3 is not reachable, least is 5.38",
        "not run: films at 9, 3: films needs frames; the questions here are about one picture each",
        "not run: surprised at 9, 3: no text encoder beside this checkpoint",
    ):
        assert reason in " ".join(printed.split())
        assert reason in (out / "table.md").read_text()
    table = (out / "table.md").read_text()
    assert "| late, layer 1 | 9 | 8.9 |" in table
    assert "| late | 3 | - | not reachable, least is 5.38 | - |" in table
    assert "| late@kept4 | - | 12.0 |" in table and "| marks | - | 36.0 |" in table
    late = result(out / "late-9")
    assert (late["tokens"], late["mean_tokens"], late["layers"]) == (9, 71 / 8, [1])
    assert late["method_config"] == Late(1, 5).to_dict()
    made = json.loads((out / "comparison.json").read_text())
    assert {r["name"] for r in made["not_run"]} == {"late", "films", "surprised", "boxes"}
    compared = {r["cell"] for r in made["rows"] if r["difference"] is not None}
    assert compared == {"late-9", "reader-9", "reader-3"}, "at one budget each, or not at all"
    assert "What is thing number 1 there?" in Reader.seen
    assert not any("Reference" in text or "single word" in text for text in Reader.seen)


def test_what_turns_out_at_work_is_an_error_when_asked_for_by_name(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "surprised")
    assert run_main(main, args) == 2
    assert "error: surprised: no text encoder beside this checkpoint" in capsys.readouterr().err


def test_nominal_and_measured_stand_side_by_side(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "late", "--budget", "nominal")
    assert main([*args, "--limit", "3"]) == 0
    text = (tmp_path / "textvqa" / "table.md").read_text()
    assert "| late+budget=nominal | 9 | 22.5 |" in text and "asked: the papers' count" in text


def test_markdown_without_comparison_has_no_such_column(tmp_path: Path) -> None:
    one = {
        "method": "full", "label": "full", "tokens": 36, "budget": None, "mean_tokens": 36.0,
        "score": 50.0, "failed": 0, "flops": 1e9, "samples_per_second": 1.0, "model": "m",
        "n": 2, "batch_size": 1, "dtype": "float32", "attn_implementation": "sdpa",
        "device": "cpu", "cell": "full-36",
    }  # fmt: skip
    text = markdown_table("T", [one])
    assert "vs" not in text.splitlines()[2] and "not run" not in text


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What is it?\nAnswer the question using a single word or phrase.", "What is it?"),
        ("<image>\nWhat is it?\nReference OCR token: A, b\nAnswer the question using a single "
         "word or phrase.", "What is it?"),
        ("Reference OCR token: x\nWho?\nPlease answer this question with one word.", "Who?"),
        ("OCR tokens: a b. Question: Is it? Short answer:", "Is it?"),
        ("Which?\nA. one\nB. two\nAnswer with the option's letter from the given choices directly.",
         "Which?\nA. one\nB. two"),
        ("Please answer yes or no.", "Please answer yes or no."),
    ],
)  # fmt: skip
def test_raw_question(prompt: str, question: str) -> None:
    assert raw_question(prompt) == question


def test_raw_question_is_the_annotations_question_on_the_bundled_data() -> None:
    samples = read_questions("playground/data/eval/textvqa/llava_textvqa_val_v051_ocr.jsonl")
    assert len(samples) > 1000
    for sample in samples:
        assert raw_question(sample.prompt).lower() == question_of(sample.prompt)
