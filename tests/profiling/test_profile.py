"""`python -m visiondrop.profile`: what it writes, prints, keeps and refuses. No time is judged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.profiling.test_counting import tiny_config
from visiondrop import profile
from visiondrop.profiling import latency, rows
from visiondrop.profiling.flops import prefill_flops
from visiondrop.profiling.presets import random_model
from visiondrop.profiling.rows import NOT_MEASURED, Row, text_table


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on the disk."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    random_model(tiny_config(), torch.float32).save_pretrained(folder)
    return folder


SMALL = ["--new-tokens", "1,3", "--repeats", "2", "--warmup", "0", "--text-tokens", "30"]

PRESET = ["--preset", "llava-1.5-7b"]
# TFLOPs as the VisionDrop paper prints them.
PAPER = [
    ("llava-1.5-7b", "full", "64", 9.06),
    ("llava-1.5-7b", "visiondrop", "64", 2.11),
    ("llava-next-7b", "full", "320", 46.25),
    ("llava-next-7b", "visiondrop", "320", 7.70),
]


@pytest.mark.parametrize(("preset", "method", "tokens", "printed"), PAPER)
def test_the_papers_cells(
    preset: str, method: str, tokens: str, printed: float, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "cell.json"
    arguments = ["--preset", preset, "--method", method, "--tokens", tokens, "--flops"]
    assert profile.main([*arguments, "--no-count", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["tflops"] == pytest.approx(printed, rel=0.01)
    (row,) = written["rows"]
    assert row["tflops"] == written["tflops"] == pytest.approx(sum(row["parts"].values()))
    assert set(row["parts"]) == {"tower", "projector", "decoder", "lm_head"}
    assert len(row["kv_bytes_by_layer"]) == 32 and sum(row["kv_bytes_by_layer"]) == row["kv_bytes"]
    if method == "full":
        patches, text = (576, 66) if "1.5" in preset else (2880, 113)
        assert row["kv_bytes"] == 2 * 32 * 4096 * 2 * (patches + text)
    assert row["ttft_ms"] is None and row["tflops_counted"] is None


@pytest.mark.parametrize(
    ("preset", "tokens"),
    [("llava-1.5-7b", 64), pytest.param("llava-next-7b", 320, marks=pytest.mark.slow)],
)
def test_counted_on_four_layers(
    preset: str, tokens: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as there are stages."""
    out = tmp_path / "layers.json"
    arguments = ["--preset", preset, "--layers", "4", "--method", "stock,visiondrop"]
    assert profile.main([*arguments, "--flops", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert "tflops" not in written, "two rows"
    stock, reduced = written["rows"]
    for row in (stock, reduced):
        assert row["tflops_counted"] == pytest.approx(row["tflops_run"], rel=1e-9)
        assert row["parts_counted"] == pytest.approx(row["parts_run"])
    assert stock["tflops_selection"] == 0 < reduced["tflops_selection"]
    assert reduced["tokens"] == tokens == pytest.approx(reduced["mean_tokens"], abs=0.5)
    newlines = reduced["measured_tokens"] - reduced["mean_tokens"]
    assert (newlines > 0) == ("next" in preset), "newlines are among them"
    printed = capsys.readouterr().out
    assert NOT_MEASURED in printed and "differ by 0.00% at most" in printed


def test_two_layers_run_and_say_what_they_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "two.json"
    assert profile.main([*PRESET, "--layers", "2", "--flops", "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["mean_tokens"] == 64 and row["settings"]["llm"] == {}
    assert row["tflops_counted"] == pytest.approx(row["tflops_run"], rel=1e-9)
    assert "2 decoder layers have no room" in row["remark"]
    assert row["remark"] in capsys.readouterr().out
    assert profile.main([*PRESET, "--layers", "2", "--flops", "--tokens", "600"]) == 2
    assert "of 577" in capsys.readouterr().err


def test_measured_rows(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.json"
    names = "stock,full,visiondrop,fastv,trim,globalcom2,dtd,random,tome"
    arguments = ["--model", str(tiny), "--method", names, "--tokens", "20,16", *SMALL]
    assert profile.main([*arguments, "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    found = {(row["method"], row["tokens"]): row for row in written["rows"]}
    assert len(found) == 3 + 2 * 6
    config = tiny_config()
    for (name, tokens), row in found.items():
        if name in ("globalcom2", "dtd"):
            assert row["reason"].startswith(f"'{name}' needs") and row["ttft_ms"] is None
            continue
        assert not row["reason"] and row["settings"].get("name") == (
            None if name == "stock" else name
        )
        for figures in (row["ttft_ms"], row["end_to_end_ms"]["3"], row["faster"]["1"]):
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]
            assert figures["count"] == 2
        assert (row["selection_ms"] is None) == (name in ("stock", "full"))
        assert row["tflops_counted"] > 0 and row["energy_j"] is None
        if name == "tome":
            assert row["tflops"] is row["tflops_run"] is row["kv_bytes"] is None
            continue
        assert row["tflops_counted"] == pytest.approx(row["tflops_run"], rel=1e-9)
        if tokens:
            assert row["mean_tokens"] == pytest.approx(tokens, abs=0.5)
        ledger = [kv // (2 * 32 * 4) - 30 for kv in row["kv_bytes_by_layer"]]
        told = prefill_flops(config, ledger, 30, like_paper=True).total / 1e12
        assert row["tflops"] == pytest.approx(told)
    assert found["trim", 20]["settings"]["clip"] == "random weights"
    assert found["trim", 20]["tflops_selection"] > found["random", 20]["tflops_selection"] == 0
    assert written["settings"]["attention"] == "sdpa" and written["settings"]["engine"] == "none"
    assert {"device", "threads", "system"} == set(written["machine"])
    assert {"python", "torch", "transformers", "cuda"} == set(written["versions"])
    printed = capsys.readouterr().out
    assert "faster" in printed and NOT_MEASURED not in printed and "crops" in printed


def test_stopped_it_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.json"
    base = ["--model", str(tiny), *SMALL, "--json", str(out)]
    assert profile.main([*base, "--tokens", "20"]) == 0
    first = json.loads(out.read_text())
    assert first["tflops"] == first["rows"][0]["tflops"]
    assert profile.main([*base, "--tokens", "16"]) == 0
    both = json.loads(out.read_text())
    assert [row["tokens"] for row in both["rows"]] == [20, 16] and both["rows"][0] == first["rows"][
        0
    ]
    assert both["tflops"] == both["rows"][1]["tflops"], "of the row that was asked for"
    monkeypatch.setattr(profile, "fill", lambda *_: pytest.fail("measured again"))
    assert profile.main([*base, "--tokens", "20,16"]) == 0
    again = json.loads(out.read_text())
    assert again["rows"] == both["rows"] and "tflops" not in again
    capsys.readouterr()
    assert profile.main([*base, "--tokens", "20", "--repeats", "3"]) == 2
    said = capsys.readouterr().err
    assert "times of other settings" in said and "repeats 2 there, 3 here" in said
    assert "another file" in said
    assert json.loads(out.read_text()) == again, "nothing is lost"


def test_formulas_of_other_settings_are_replaced(tmp_path: Path) -> None:
    """They cost nothing; times are never thrown away."""
    out = tmp_path / "f.json"
    for preset in ("llava-1.5-7b", "llava-1.5-13b"):
        base = ["--preset", preset, "--flops", "--no-count", "--json", str(out)]
        assert profile.main(base) == 0
        written = json.loads(out.read_text())
        assert written["settings"]["model"] == preset and len(written["rows"]) == 1
    out.write_text('{"other": 1}')
    assert profile.main(base) == 2 and out.read_text() == '{"other": 1}'


def test_random_weights_of_a_preset_are_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The road that a 7B preset takes, with a small preset."""

    class Small:
        config = staticmethod(lambda layers: tiny_config(anyres=True))

    monkeypatch.setitem(profile.PRESETS, "llava-next-7b", Small)  # type: ignore[misc]
    out = tmp_path / "s.json"
    base = ["--preset", "llava-next-7b", "--tokens", "60", "--batch", "2", "--json", str(out)]
    assert profile.main([*base, *SMALL, "--method", "visiondrop,random"]) == 0
    for row in json.loads(out.read_text())["rows"]:
        assert row["ttft_ms"]["count"] == 2
        assert row["tflops_counted"] == pytest.approx(row["tflops_run"], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*PRESET, "--method", "fastvv"], "--method fastvv: unknown; known: cdpruner"),
        ([*PRESET, "--tokens", "600", "--flops"], "average of 600.* 576"),
        ([*PRESET, "--tokens", "many"], "--tokens 'many': numbers"),
        ([*PRESET, "--repeats", "0"], "--repeats 0: at least 1"),
        ([*PRESET, "--layers", "0"], "--layers 0: at least 1"),
        ([*PRESET, "--warmup", "-1"], "--warmup -1: at least 0"),
        ([*PRESET, "--new-tokens", "0"], "--new-tokens 0: at least 1"),
        ([*PRESET, "--text-tokens", "0", "--flops"], "0 text tokens"),
        ([*PRESET, "--device", "tpux"], "--device tpux: not a device"),
        ([*PRESET, "--device", "cuda"], "sees no CUDA device; use --device cpu"),
        ([*PRESET, "--attn", "flash_attention_2"], "needs a CUDA device, not cpu; use sdpa"),
        ([*PRESET, "--flops", "--batch", "2"], "--batch 2: --flops is of one prompt"),
        ([*PRESET, "--method-arg", "merge"], "--method-arg merge: FIELD=VALUE"),
        ([*PRESET, "--method-arg", "merge=max"], "merge='max'; possible"),
        ([*PRESET, "--method", "globalcom2"], "needs pictures cut into several crops"),
        (["--model", "nowhere"], "--model nowhere: no folder with a config.json"),
        (["--model", "nowhere", "--layers", "2"], "--layers is for presets"),
    ],
)  # fmt: skip
def test_bad_arguments_end_before_any_compute(
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profile, "make_model", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert profile.main(arguments) == 2
    captured = capsys.readouterr()
    assert re.search(says, captured.err) and captured.err.startswith("error: ")


def test_weights_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visiondrop.profiling.machine.free_bytes", lambda _: 10 * 10**9)
    monkeypatch.setattr(profile, "random_model", lambda *_: pytest.fail("made"))
    assert profile.main([*PRESET, "--dtype", "bfloat16", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "7.1 billion weights in bfloat16 take 14.1 GB, and cpu has 10.0 GB left" in said
    assert "--flops" in said


def test_table_of_rows_that_end_early() -> None:
    lines = text_table(["method", "tokens", "figure", "more"], [
        ["a", "64", "1.5", NOT_MEASURED], ["longer", "-", "a reason that goes on and on"],
    ]).splitlines()  # fmt: skip
    assert lines[0].startswith("method  tokens  figure") and lines[0].endswith("more")
    assert lines[2].endswith(NOT_MEASURED) and len(lines[2]) == len(lines[0])
    assert lines[3] == "longer       -  a reason that goes on and on"
    assert latency.spread([1.0]).count == 1 and Row("a").deviation is None
    assert rows.cells(Row("a", 8, "why not"), [1]) == ["a", "8", "why not"]


def test_an_engine_for_all(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Full and methods with the same one; a method that it cannot serve says so in its row."""
    out = tmp_path / "engine.json"
    arguments = ["--model", str(tiny), *SMALL, "--tokens", "20", "--json", str(out)]
    assert profile.main([*arguments, "--engine", "replay", "--method", "visiondrop,vmtc_cmai"]) == 0
    written = json.loads(out.read_text())
    fast, refused = written["rows"]
    assert written["settings"]["engine"] == "replay"
    assert fast["recordings"] > 0 and fast["recording_s"] > 0 and fast["ttft_ms"]["count"] == 2
    assert refused["reason"].endswith("run it without an engine") and not refused["ttft_ms"]
    assert f"{fast['recordings']} recordings" in capsys.readouterr().out
    assert profile.main([*arguments, "--engine", "none"]) == 2
    assert "engine replay there, none here" in capsys.readouterr().err
    assert profile.main(["--model", str(tiny), "--engine", "graphs", "--device", "cpu"]) == 2
    assert "--engine graphs needs a CUDA device, not cpu" in capsys.readouterr().err
    assert profile.main([*PRESET, "--engine", "compile", "--flops"]) == 2
    assert "--engine compile" in capsys.readouterr().err
