"""The compare command from runs of a tiny model to a report with drawings."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.compare.__main__ import main
from llava.eval.errors import run_main
from llava.eval.run_benchmark import main as run_benchmark
from tests.eval.conftest import TinyData, write_data
from visiondrop.draw import GAP, HEAD, SIDE

QUESTIONS = 12  # on three pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_data(tmp_path_factory.mktemp("compared") / "textvqa")


@pytest.fixture(scope="module")
def runs(tiny_model: Path, data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full, VisionDrop and two draws of random; what the full model says is right."""
    out = tmp_path_factory.mktemp("runs")
    flags = [
        *("textvqa", "--model-path", str(tiny_model), "--data", str(data.folder)),
        *("--out", str(out), "--tokens", "9", "--batch-size", "4", "--max-new-tokens", "3"),
        *("--workers", "0", "--dtype", "float32", "--nproc", "1", "--limit", str(QUESTIONS)),
    ]
    assert run_benchmark([*flags, "--methods", "full"]) == 0
    entries = json.loads(data.annotations.read_text())["data"]
    for entry, row in zip(entries, rows(out / "textvqa" / "full-36")):
        entry["answers"] = [row["text"]] * 10
    data.annotations.write_text(json.dumps({"data": entries}))
    assert run_benchmark([*flags, "--methods", "full,visiondrop,random", "--seeds", "0,1"]) == 0
    return out / "textvqa"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def compare(a: Path, b: Path, out: Path, data: TinyData, *more: str) -> int:
    flags = ["--data", str(data.folder), "--out", str(out), "--device", "cpu", *more]
    return run_main(main, [str(a), str(b), *flags])


def test_report_with_kept_tokens(
    runs: Path, data: TinyData, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, more = tmp_path / "report", ("--model-path", str(tiny_model), "--pictures", "3")
    assert compare(runs / "full-36", runs / "visiondrop-9", out, data, *more) == 0
    printed = capsys.readouterr().out
    result = json.loads((runs / "visiondrop-9" / "result.json").read_text())
    assert f"{result['score'] - 100:+.1f} [" in printed and "McNemar's exact p" in printed
    flips = json.loads((out / "flips.json").read_text())
    changed = [row["text"] for row in rows(runs / "visiondrop-9")]
    before = [row["text"] for row in rows(runs / "full-36")]
    places = [i for i, (a, b) in enumerate(zip(before, changed)) if a != b]
    assert [flip["place"] for flip in flips["changed"]] == places and len(places) >= 3
    assert flips["all"]["same"] == QUESTIONS - len(places)
    assert flips["b"]["method"] == "visiondrop" and flips["all"]["score_a"] == 100

    text = (out / "report.md").read_text()
    pictures = re.findall(r"!\[[^]]*\]\((pictures/\d\d\.png)\)", text)
    assert pictures == ["pictures/01.png", "pictures/02.png", "pictures/03.png"]
    assert "asked again" not in text  # alone, in float32, it says the same as in its batch
    traces = json.loads((out / "traces.json").read_text())
    for trace in traces:
        assert trace["a"]["stages"] == [] and trace["a"]["tokens_per_layer"] == [36] * 8
        assert trace["b"]["tokens_per_layer"] == result["ledger"]
        assert [s["place"] for s in trace["b"]["stages"]] == ["encoder", "llm", "llm", "llm"]
        with Image.open(out / trace["picture"]) as sheet:  # the whole picture, then four stages
            assert sheet.size == (5 * SIDE + 6 * GAP, SIDE + 2 * HEAD + GAP)
            whole = sheet.crop((GAP, HEAD, GAP + SIDE, HEAD + SIDE))
            stage = sheet.crop((SIDE + 2 * GAP, HEAD, 2 * (SIDE + GAP), HEAD + SIDE))
            kept = trace["b"]["stages"][0]["kept"]
            shown = {p for p in range(36) if patch_of(whole, p) == patch_of(stage, p)}
            assert {patch for patch in kept if patch >= 0} <= shown != set(range(36))


def patch_of(panel: Image.Image, patch: int) -> bytes:
    """The inner pixels of a patch, without the frame that a contextual token has."""
    side = SIDE // 6
    top, left = (side * place for place in divmod(patch, 6))
    return panel.crop((left + 4, top + 4, left + side - 4, top + side - 4)).tobytes()


def test_seeds_are_drawn_by_their_own_choice(
    runs: Path, data: TinyData, tiny_model: Path, tmp_path: Path
) -> None:
    out, more = tmp_path / "report", ("--model-path", str(tiny_model), "--pictures", "40")
    assert compare(runs / "visiondrop-9", runs / "random-9", out, data, *more) == 0
    traces = json.loads((out / "traces.json").read_text())
    chosen: dict[tuple[int, int], list[int]] = {}
    for trace in traces:
        assert trace["seeds"][0] is None
        chosen[trace["place"], trace["seeds"][1]] = trace["b"]["stages"][0]["kept"]
    assert {seed for _, seed in chosen} == {0, 1}
    both = [place for place, seed in chosen if seed == 0 and (place, 1) in chosen]
    assert any(chosen[place, 0] != chosen[place, 1] for place in both)
    assert "asked again" not in (out / "report.md").read_text()


def test_what_cannot_be_drawn_is_told(
    runs: Path, data: TinyData, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs / "full-36", runs / "visiondrop-9"
    spoilt = tmp_path / "data"
    shutil.copytree(data.folder, spoilt)
    for picture in (spoilt / "train_images").iterdir():
        picture.write_text("no picture")
    less = TinyData(spoilt, data.questions, data.images, data.annotations)
    out = tmp_path / "without"
    assert compare(a, b, out, less, "--model-path", str(tiny_model), "--pictures", "1") == 0
    assert "cannot be read" in (out / "report.md").read_text()
    assert not list((out / "pictures").iterdir())
    # Without the model the pictures are plain, and the report says what to give.
    assert compare(a, b, out, data, "--pictures", "1") == 0
    text = (out / "report.md").read_text()
    assert "is not the model that run A was made with" in text and "--model-path" in text
    with Image.open(out / "pictures" / "01.png") as sheet:
        assert sheet.width == SIDE + 2 * GAP
    capsys.readouterr()
    other = Path(__file__).parents[1] / "golden" / "tiny-llava-v1.5"
    assert compare(a, b, out, data, "--model-path", str(other)) == 2
    assert "is not the model" in capsys.readouterr().err.splitlines()[-1]
    assert compare(a, b, out, data, "--pictures", "-1") == 2
    assert (out / "flips.csv").is_file()
