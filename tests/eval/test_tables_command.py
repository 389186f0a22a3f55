"""A table on a tiny model, from the command to the files, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from llava.eval import run_benchmark, running
from llava.eval.loading import default_aspect_ratio
from llava.eval.tables import answer, columns, command
from llava.eval.tables.command import EXIT_INCOMPLETE, main
from llava.eval.tables.spec import BLANK

NAME = "table1_llava15"
METHODS = "blank picture,visiondrop,random,divprune"


def flags(model: Path, folder: Path, *more: str) -> list[str]:
    return [
        *(NAME, "--model-path", str(model), "--benchmarks", "gqa,mme", "--methods", METHODS),
        *("--limit", "4", "--tokens", "9", "--batch-size", "2", "--max-new-tokens", "3"),
        *("--workers", "0", "--dtype", "float32", "--out", str(folder / "out"), "--nproc", "0"),
        *("--results", str(folder / "results"), *more),
    ]


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A table of 2 benchmarks, stopped once after the first of them."""
    folder = tmp_path_factory.mktemp("table")
    args = flags(tiny_model, folder)
    show, steps = command.show, []

    def stop_after_the_first(writer, name) -> None:
        show(writer, name)
        steps.append(name)
        if len(steps) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "show", stop_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            main(args)
    text = (folder / "results" / f"{NAME}.md").read_text()
    assert "MME: nothing answered yet" in text and "GQA: accuracy" in text
    assert main(args) == 0
    return folder, args


def rows(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with (folder / "results" / f"{NAME}.csv").open(newline="") as stream:
        return {(r["benchmark"], r["method"], r["asked"]): r for r in csv.DictReader(stream)}


def test_scores_are_those_of_the_benchmark_command(
    made: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    folder, args = made
    table = rows(folder)
    for benchmark in ("gqa", "mme"):
        same = [
            *(benchmark, "--model-path", str(tiny_model), "--limit", "4", "--tokens", "9"),
            *("--batch-size", "2", "--max-new-tokens", "3", "--workers", "0", "--nproc", "1"),
            *("--dtype", "float32", "--out", str(tmp_path), "--seeds", "0,1,2"),
            *("--methods", "full,visiondrop,random,divprune"),
        ]
        assert run_benchmark.main(same) == 0
        for cell in ("full-36", "visiondrop-9", "random-9", "divprune-9"):
            result = json.loads((tmp_path / benchmark / cell / "result.json").read_text())
            method, asked = cell.split("-")
            row = table[benchmark, method, "" if method == "full" else asked]
            assert float(row["score"]) == pytest.approx(result["score"], abs=1e-4)
            assert float(row["mean_tokens"]) == pytest.approx(result["mean_tokens"], abs=1e-4)
            assert row["n"] == "4" and row["batch_size"] == "2" and row["dtype"] == "float32"
            assert bool(row["spread"]) == (method == "random") == (row["mcnemar_p"] == "") or (
                method == "full"
            )
        assert (folder / "out" / "blank" / benchmark / "full-36" / "result.json").is_file()
        assert (benchmark, BLANK, "") in table


def test_a_second_time_nothing_is_computed_and_no_model_loaded(
    made: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, args = made
    before = {p.name: p.read_bytes() for p in (folder / "results").iterdir()}
    names = {f"{NAME}{ending}" for ending in (".csv", ".md", ".tex", "_details.md")}
    assert set(before) - {f"{NAME}.png"} == names
    monkeypatch.setattr(running, "load_model", lambda *_: pytest.fail("the model was loaded"))
    assert main(args) == 0
    assert "nothing open of 56 answers" in capsys.readouterr().out
    for name, content in before.items():
        if not name.endswith(".png"):
            assert (folder / "results" / name).read_bytes() == content
    for path in (folder / "out").rglob("result.json"):
        assert json.loads(path.read_text())["computed"] == 0


def test_missing_answers_only_are_computed_again(made: tuple[Path, list[str]]) -> None:
    folder, args = made
    shutil.rmtree(folder / "out" / "mme" / "divprune-9")
    before = rows(folder)
    assert main(args) == 0
    assert rows(folder) == before
    computed = {
        path.parent.name: json.loads(path.read_text())["computed"]
        for path in (folder / "out" / "mme").glob("*/result.json")
    }
    assert computed.pop("divprune-9") == 4 and not any(computed.values())


def test_each_benchmark_has_a_tower_cache_of_its_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of two benchmarks may have one name; those of one are encoded once for all."""
    caches = []
    fresh = running.TowerCache

    def noted(*args, **kwargs):
        caches.append(fresh(*args, **kwargs))
        return caches[-1]

    monkeypatch.setattr(running, "TowerCache", noted)
    args = flags(tiny_model, tmp_path, "--methods", "visiondrop,uniform")
    assert main(args) == 0
    used = [cache for cache in caches if cache.hits]
    assert len(used) == 2, "one a benchmark"
    for cache in used:
        pictures = {"gqa": 4, "mme": 2}  # at most
        assert cache.misses <= max(pictures.values()) and cache.hits >= cache.misses


def test_what_cannot_be_run_says_why_and_the_rest_goes_on(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path("playground/data/eval/gqa").resolve()
    data = tmp_path / "data"
    data.mkdir()
    (data / "gqa").symlink_to(source)
    args = flags(tiny_model, tmp_path, "--data", str(data), "--methods", "visiondrop,fastv")
    assert main([*args, "--tokens", "9,3"]) == EXIT_INCOMPLETE
    said = " ".join(capsys.readouterr().out.split())
    assert "not run MME: MME data not found" in said and "scripts/data/prepare.py mme" in said
    table = rows(tmp_path)
    assert "not found" in table["mme", "", ""]["not_run"]
    assert table["gqa", "visiondrop", "3"]["score"] and table["gqa", "fastv", "9"]["score"]
    assert "not reachable, least is" in table["gqa", "fastv", "3"]["not_run"]
    text = (tmp_path / "results" / f"{NAME}.md").read_text()
    assert "least is 5.38" in text and "| not run |" in text


def test_a_failing_cell_ends_no_table(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = answer.run_all

    def run_all(job, runs, **more):
        if runs[0].name == "uniform" and job.benchmark.name == "gqa":
            raise RuntimeError("out of memory")
        return real(job, runs, **more)

    monkeypatch.setattr(answer, "run_all", run_all)
    assert main(flags(tiny_model, tmp_path, "--methods", "visiondrop,uniform")) == EXIT_INCOMPLETE
    table = rows(tmp_path)
    assert table["gqa", "uniform-9", "9"]["not_run"] == "out of memory"
    assert table["mme", "uniform", "9"]["score"]
    text = (tmp_path / "results" / f"{NAME}.md").read_text()
    assert "| failed |" in text and "failed: uniform-9 at 9: out of memory (GQA)" in text


def test_answers_of_another_run_are_refused_before_anything_is_computed(
    made: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, args = made
    monkeypatch.setattr(running, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(command.EvalError, match="belongs to another run"):
        main([*args, "--max-new-tokens", "4"])


def test_bad_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(command.EvalError, match="unknown method 'fastw'"):
        columns.check_methods(["fastw"])
    columns.check_methods(["all", BLANK, "fastv@K2_R50"])


def test_a_table_without_a_checkpoint_shows_what_was_published(tmp_path: Path) -> None:
    name = "table2_llava_next"
    argv = [name, "--out", str(tmp_path), "--model-path", "", "--data", str(tmp_path / "nothing")]
    assert main(argv) == EXIT_INCOMPLETE
    text = (tmp_path / f"{name}.md").read_text()
    why = "no bundled checkpoint; give one with MODEL"
    assert text.split("## Not run")[1].count(why) >= 3, "each column says why"
    assert "64.2 [mmtok]" in text
    assert not (tmp_path / f"{name}.png").exists()


def test_table_2_runs_on_the_bundled_tiles(tmp_path: Path) -> None:
    """Its four columns are planned on the any-resolution sets with the ratio form."""
    spec = command.get_spec("table2_llava_next")
    args = command.parser().parse_args([spec.name, "--limit", "2"])
    flags = command.benchmark_flags(spec, args, [])
    assert flags[:2] == ("--model-path", spec.model)
    for name in spec.bundled:
        methods = ("full", "visiondrop")
        request = columns.Request(spec, name, methods, spec.tokens, flags, str(tmp_path), spec.data)
        column = columns.plan(request)
        assert column.reason is None and column.job is not None
        assert default_aspect_ratio(column.job.config) == "anyres"
        runs = {run.tokens: run.method for run in column.runs if run.name == "visiondrop"}
        assert set(runs) == set(spec.tokens)
        assert all(method.tiles.budget == "ratio" for method in runs.values())


def test_the_bundled_sizes_are_the_checkpoints() -> None:
    from transformers import AutoConfig

    from llava.eval.tables.presets import POCKET_NEXT
    from visiondrop.profiling import ModelSize

    config = AutoConfig.from_pretrained("checkpoints/pocket-llava-next")
    assert ModelSize.from_config(config) == POCKET_NEXT


def test_wandb_has_one_group_and_a_run_for_each_cell(
    made: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    folder, args = made
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(folder / "data"))
    groups = []
    import wandb

    init = wandb.init

    def noted(**settings):
        groups.append((settings["group"], settings["name"]))
        return init(**settings)

    monkeypatch.setattr(wandb, "init", noted)
    few = [*args, "--benchmarks", "gqa", "--methods", "random", "--wandb"]
    few += ["--results", str(folder / "wandb")]
    assert main(few) == 0
    assert sorted(groups) == [(NAME, "gqa/full"), (NAME, "gqa/random-9")]
    found = list((folder / "out" / "gqa" / "random-9").glob("wandb/offline-run-*"))
    assert len(found) == 1, "one run, not one a seed"
    assert main(few) == 0
    assert len(groups) == 2, "nothing is logged twice"


@pytest.mark.slow
def test_two_processes_give_the_same_table(
    made: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    """And each has answered its share; that of a cell left half done, too."""
    folder, _ = made
    few = ("--benchmarks", "gqa", "--methods", "visiondrop,divprune", "--nproc", "2")
    assert main(flags(tiny_model, tmp_path, *few)) == 0
    assert (tmp_path / "out" / "gqa" / "divprune-9" / "answers.jsonl").read_bytes() == (
        folder / "out" / "gqa" / "divprune-9" / "answers.jsonl"
    ).read_bytes()
    result = json.loads((tmp_path / "out/gqa/divprune-9/result.json").read_text())
    assert [process["computed"] for process in result["processes"]] == [2, 2]
    mine, theirs = (rows(where)["gqa", "divprune", "9"] for where in (tmp_path, folder))
    assert {**mine, "commit": ""} == {**theirs, "commit": ""}
