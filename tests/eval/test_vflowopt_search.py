"""The search of VFlowOpt's hyper-parameters on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llava.eval import run_benchmark, vflowopt_search
from llava.eval.cli import parse_method_args
from llava.eval.errors import EvalError
from llava.eval.loading import load_model, read_config
from llava.eval.planning import geometry_of_config, make_method
from tests.eval.conftest import TinyData
from visiondrop import Full, Reducer, TowerCache
from visiondrop.methods.vflowopt import VFlowOpt

pytest.importorskip("optuna", reason="the search is an extra: pip install 'visiondrop[search]'")


def command(model: Path, data: TinyData, out: Path, trials: int, *more: str) -> list[str]:
    return [
        *("--model-path", str(model), "--questions", str(data.questions), "--device", "cpu"),
        *("--tokens", "12", "--samples", "4", "--batch-size", "3", "--trials", str(trials)),
        *("--out", str(out), *more),
    ]


def objective_of(model: Path, data: TinyData, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """What `main` would search with, without searching."""
    caught = {}

    def stop(_optuna: object, study: object, space: object, objective: object, *_: object):
        caught.update(study=study, space=space, objective=objective)
        raise EvalError("caught")
        yield

    monkeypatch.setattr(vflowopt_search, "search", stop)
    with pytest.raises(EvalError, match="caught"):
        vflowopt_search.main(command(model, data, data.folder / "caught.json", 1))
    return caught["space"], caught["objective"]


def test_search_goes_on_where_it_stopped_and_ends_alike(
    tiny_model: Path, tiny_data: TinyData, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice = tiny_data.folder / "once.json", tiny_data.folder / "twice.json"
    assert vflowopt_search.main(command(tiny_model, tiny_data, once, 14)) == 0
    vflowopt_search.main(command(tiny_model, tiny_data, twice, 3))
    capsys.readouterr()
    vflowopt_search.main(command(tiny_model, tiny_data, twice, 14))
    assert capsys.readouterr().out.count("trial ") == 11
    result = json.loads(once.read_text())
    assert json.loads(twice.read_text()) == result
    assert result["cosine"] > result["cosine_of_released_shape"]
    assert abs(result["mean_tokens"] - 12) <= 0.5 and len(result["samples"]) == 4
    vflowopt_search.main(command(tiny_model, tiny_data, once, 14))  # nothing is left to do
    assert json.loads(once.read_text()) == result

    # The result is a method, from Python and on the command line.
    method = Reducer.from_dict(result["method"])
    geometry = geometry_of_config(read_config(vflowopt_search.model_choice(_args(tiny_model))))
    args = parse_method_args([f"@{once}"])
    assert make_method("vflowopt", 12, geometry, args) == method
    with pytest.raises(EvalError, match="an average of 30 and ratios that have another"):
        make_method("vflowopt", 30, geometry, args)


def _args(model: Path) -> object:
    return vflowopt_search.parser().parse_args(
        ["--model-path", str(model), "--questions", "", "--out", ""]
    )


def test_objective_by_hand(
    tiny_model: Path, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample at a time, hidden states as transformers itself hands them out."""
    _, objective = objective_of(tiny_model, tiny_data, monkeypatch)
    method = VFlowOpt((0.4, 0.8, 0.6), (2, 5), t=1.0, alpha=0.4, grid=3.0)
    model = objective.loaded.model
    cosines = []
    for prepared, _ in objective.batches:
        for one in prepared:
            states = []
            for used in (Full(), method):
                with used(model), torch.no_grad():
                    out = model.generate(
                        one.input_ids[None],
                        images=one.image[None],
                        max_new_tokens=1,
                        do_sample=False,
                        output_hidden_states=True,
                        return_dict_in_generate=True,
                    )
                states.append(out.hidden_states[0][-1][0, -1])
            cosines.append(float(torch.cosine_similarity(*states, dim=0)))
    assert len(cosines) == 4 and len(set(cosines)) == 4
    assert objective(method) == pytest.approx(sum(cosines) / 4, abs=1e-5)
    assert objective(method) < 0.9999


def test_nothing_pruned_is_worth_one(
    tiny_model: Path, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, objective = objective_of(tiny_model, tiny_data, monkeypatch)
    assert objective(VFlowOpt((1.0,), ())) == pytest.approx(1.0, abs=1e-6)
    assert isinstance(objective.cache, TowerCache) and objective.cache.hits > 0


class Fixed:
    """A trial at one corner of the space."""

    def __init__(self, corner: int):
        self.corner = corner

    def suggest_float(self, name: str, low: float, high: float) -> float:
        place = ["first", "entry", "t", "alpha", "grid"].index(name)
        return high if self.corner >> place & 1 else low


@pytest.mark.parametrize("tokens", [5, 12, 30])
def test_every_corner_of_the_space_has_the_average(
    tokens: int, tiny_model: Path, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, _ = objective_of(tiny_model, tiny_data, monkeypatch)
    for recycle in ("encoder", "all", "none"):
        space = vflowopt_search.Space(tokens, space.geometry, recycle, (space.mean, space.std))
        means = set()
        for corner in range(32):
            try:
                method = space.suggest(Fixed(corner))
            except ValueError as error:
                # Cells finer than what the last stage leaves: such a trial is told off, unrun.
                assert recycle == "all" and "cells" in str(error)
                continue
            means.add(round(method.mean_tokens(8, 36), 3))
            assert abs(method.mean_tokens(8, 36) - tokens) <= 0.5
            assert method.recycle == recycle and method.image_std == tuple(space.std)
        assert means


def test_bad_input(
    tiny_model: Path, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"

    def refused(words: str, *more: str) -> None:
        with pytest.raises(EvalError, match=words):
            vflowopt_search.main(command(tiny_model, tiny_data, out, 2, *more))
        assert not out.exists()

    refused("--trials 0", "--trials", "0")
    refused("--samples 0", "--samples", "0")
    refused("average of 37", "--tokens", "37")
    refused("image folder not found", "--image-folder", str(tmp_path / "none"))
    lines = [json.loads(line) for line in tiny_data.questions.read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({**line, "image": None}) + "\n" for line in lines))
    refused("no question of the file has a picture", "--questions", str(bare))
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    refused(r"pip install 'visiondrop\[search\]'")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"method": 3}'])
def test_a_file_without_a_method_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(EvalError, match="no method can be read"):
        parse_method_args([f"@{file}"])
    with pytest.raises(EvalError, match="no method can be read"):
        parse_method_args([f"@{tmp_path / 'missing.json'}"])


def test_the_loaded_model_is_left_as_it_was(tiny_model: Path, tiny_data: TinyData) -> None:
    loaded = load_model(vflowopt_search.model_choice(_args(tiny_model)))
    with vflowopt_search.last_token_states(loaded.model) as found:
        loaded.model(torch.tensor([[1, 2, 3]]))
    assert found[0].shape == (1, 32)
    loaded.model(torch.tensor([[1, 2, 3]]))
    assert len(found) == 1


def test_a_result_runs_as_a_cell_with_a_short_name(
    tiny_model: Path, tiny_data: TinyData, tmp_path: Path
) -> None:
    """All fields of a found method do not fit into a folder's name; a hash of them does."""
    found = tmp_path / "found.json"
    method = VFlowOpt.from_average(12, num_layers=8, num_patches=36, t=1.5, alpha=0.25)
    found.write_text(json.dumps({"method": method.to_dict()}))
    args = [
        "textvqa",
        "--model-path",
        str(tiny_model),
        "--data",
        str(tiny_data.folder),
        "--limit",
        "4",
    ]
    args += ["--out", str(tmp_path / "out"), "--device", "cpu", "--tokens", "12"]
    assert run_benchmark.main([*args, "--method", "vflowopt", "--method-arg", f"@{found}"]) == 0
    (result,) = (tmp_path / "out").rglob("result.json")
    assert len(result.parent.name) < 40 and result.parent.name.startswith("vflowopt-12+args=")
    written = json.loads(result.read_text())
    assert VFlowOpt.from_dict(written["method_config"]) == method
    assert parse_method_args([f"@{result}"]) == parse_method_args([f"@{found}"])
    assert abs(written["mean_tokens"] - 12) <= 0.5
