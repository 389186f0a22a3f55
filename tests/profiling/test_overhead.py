"""The benchmark of what choosing costs: that its figures are what it says. No time is judged."""

import json

import pytest
import torch

from benchmarks import overhead
from benchmarks.setting import GEOMETRIES, prompt, random_model
from visiondrop import VisionDrop
from visiondrop.profiling import prefill_flops


def test_figures_and_file(tmp_path, capsys):
    out = tmp_path / "new" / "overhead.json"
    arguments = ["--geometry", "tiny", "--tokens", "96", "40", "--repeats", "2", "--warmup", "0"]
    overhead.main([*arguments, "--device", "cpu", "--text-tokens", "20", "--json", str(out)])
    written = json.loads(out.read_text())
    full, *reduced = written["rows"]
    assert (full["method"], full["mean_tokens"], full["stages"]) == ("full", 576, 0)
    assert full["speedup"] == 1 and full["choosing"] == 0
    model, _ = random_model("tiny", torch.float32, "cpu")
    for row, tokens in zip(reduced, (96, 40), strict=True):
        ledger = VisionDrop.from_average(tokens, num_layers=4).ledger(num_layers=4)
        assert row["mean_tokens"] == pytest.approx(sum(ledger) / 4)
        assert row["tflops"] == pytest.approx(prefill_flops(model, ledger, 20).total / 1e12)
        assert row["stages"] == 4, "encoder and three LLM stages were timed"
        assert 0 < row["choosing"] < row["prefill"]
        low, high = row["choosing_over_rest_quartiles"]
        assert 0 < low <= row["choosing_over_rest"] <= high
    assert {"torch", "transformers", "device", "threads", "dtype"} <= set(written["machine"])
    printed = capsys.readouterr().out
    assert "of the rest" in printed and written["machine"]["torch"] in printed


def test_markdown_has_the_same_rows(capsys):
    arguments = ["--geometry", "tiny", "--tokens", "40", "--repeats", "1", "--warmup", "0"]
    rows = overhead.main([*arguments, "--device", "cpu", "--markdown", "--clock", "processor"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert {line.count("|") for line in lines} == {len(overhead.HEAD) + 1}
    assert f"{rows[1].choosing_over_rest:.1%}" in lines[-1]


def test_timing_changes_nothing():
    """The timed method makes the plain method's logits, and times what it runs."""
    model, _ = random_model("tiny", torch.float32, "cpu")
    inputs = prompt(model, 20)
    plain = VisionDrop.from_average(40, num_layers=4)
    timed = overhead.TimedVisionDrop.from_average(40, num_layers=4)
    timed.timed_by(overhead.Stopwatch(torch.device("cpu")))
    with torch.inference_mode():
        with plain(model):
            expected = model(**inputs, logits_to_keep=1).logits
        with timed(model):
            found = model(**inputs, logits_to_keep=1).logits
    assert torch.equal(found, expected)


def test_the_prompt_holds_a_picture_within_the_text():
    model, _ = random_model("tiny", torch.float32, "cpu")
    ids = prompt(model, 21)["input_ids"][0]
    places = (ids == model.config.image_token_id).nonzero().squeeze(1)
    assert len(ids) == 576 + 21
    assert places.tolist() == list(range(10, 586))


def test_the_7b_geometry_is_llavas():
    from transformers import LlavaConfig

    text, vision = LlavaConfig().text_config, LlavaConfig().vision_config
    sizes = (vision.num_hidden_layers, vision.hidden_size, text.num_hidden_layers)
    sizes += (text.hidden_size, text.intermediate_size, text.num_attention_heads)
    assert GEOMETRIES["llava-1.5-7b"][:6] == sizes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "nowhere/at-all"], "no such folder"),
        (["--model", ".", "--geometry", "tiny"], "exclude each other"),
        (["--clock", "processor", "--device", "cuda"], "cannot time cuda"),
        (["--repeats", "0"], "--repeats 0: at least 1"),
        (["--threads", "0"], "--threads 0: at least 1"),
    ],
)
def test_bad_arguments_end_before_any_compute(arguments, says, capsys):
    with pytest.raises(SystemExit):
        overhead.main(arguments)
    assert says in capsys.readouterr().err
