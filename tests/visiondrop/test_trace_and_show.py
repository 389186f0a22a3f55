"""The trace as JSON and as a picture; the `show` command on a stock checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from tests.visiondrop.models import LAYERS, PATCHES, generate, pixels, prompt, tiny
from visiondrop import Trace, VisionDrop
from visiondrop.draw import GAP, HEAD, SIDE
from visiondrop.show import ledger_text, main

METHOD = VisionDrop(encoder=(14, 4), llm={2: (10, 3), 4: (6, 0)})


def traced() -> Trace:
    with METHOD(tiny()) as trace:
        generate(tiny(), [prompt(3, 4, 1)], pixels(1))
    return trace


def test_fates_follow_every_patch() -> None:
    sample = traced().samples[0]
    (first, encoder), (second, llm), (third, last) = sample.fates()
    assert (first, second, third) == ("encoder", "layer 2", "layer 4")
    stages = sample.stages
    assert set(encoder) == {-1, *range(PATCHES)}
    assert {p for p, (what, _) in encoder.items() if what == "kept"} == {
        *stages[0].kept,
        *(entry["reference"] for entry in stages[0].merged),
    }
    for entry in stages[0].merged:
        for patch in entry["members"]:
            assert encoder[patch] == ("merged", entry["reference"])
    assert not [p for p, (what, _) in llm.items() if what == "dropped"]
    survivors = {p for p, (what, _) in last.items() if what == "kept"}
    assert survivors == set(stages[2].kept)
    # A patch merged at the encoder is dropped with the token that it went into.
    for patch, (what, holder) in last.items():
        if what == "dropped":
            assert llm[patch][1] not in survivors
        else:
            assert holder in survivors


def test_trace_as_json(tmp_path: Path) -> None:
    trace = traced()
    trace.save(tmp_path / "deep" / "trace.json")
    data = json.loads((tmp_path / "deep" / "trace.json").read_text())
    assert data["method"] == METHOD.to_dict()
    (sample,) = data["samples"]
    assert (
        sample["tokens_per_layer"]
        == METHOD.ledger(LAYERS, PATCHES)
        == [18] * 2 + [13] * 2 + [6] * 4
    )
    assert [stage["tokens_out"] for stage in sample["stages"]] == [18, 13, 6]
    assert not list((tmp_path / "deep").glob("*.part"))
    with pytest.raises(ValueError, match="nothing was generated"):
        _ = Trace().mean_tokens


def test_picture_shows_kept_patches_and_hides_the_rest(tmp_path: Path) -> None:
    """Kept patches are the picture itself, merged ones pale, dropped ones dark."""
    trace = traced()
    trace.draw(Image.new("RGB", (300, 200), (90, 120, 150)), tmp_path / "kept.png")
    sheet = np.asarray(Image.open(tmp_path / "kept.png").convert("L")).astype(int)
    assert sheet.shape[1] == 4 * SIDE + 5 * GAP
    side = SIDE // 6
    whole, last = sheet[HEAD:, GAP:], sheet[HEAD:, GAP + 3 * (SIDE + GAP) :]
    sample = trace.samples[0]
    for patch, (what, _) in sample.fates()[-1][1].items():
        if patch < 0:
            continue
        r, c = divmod(patch, 6)
        spot = (r * side + side // 2, c * side + side // 2)
        shade = {"kept": lambda a, b: a == b, "merged": lambda a, b: b > a + 30}
        assert shade.get(what, lambda a, b: b < a - 30)(int(whole[spot]), int(last[spot])), what


def checkpoint(folder: Path) -> Path:
    """The tiny model as a Hugging Face checkpoint with a word-level tokenizer."""
    words = {w: i + 2 for i, w in enumerate(["<s>", "USER", "What", "is", "in", "the", "picture"])}
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, **words}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    tiny().save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    ).save_pretrained(folder)
    return folder


def test_show_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = checkpoint(tmp_path / "model"), tmp_path / "image.png"
    Image.new("RGB", (40, 30), "red").save(image)
    common = ["--model", str(model), "--image", str(image)]
    assert main([*common, "--tokens", "9", "-o", str(tmp_path / "out.png")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"layers 0-1: 14,.*mean 9(\.\d+)?\n", printed), printed
    assert Image.open(tmp_path / "out.png").width == 5 * SIDE + 6 * GAP
    arguments = ["--method-arg", "encoder=[9,2]", "--method-arg", 'llm={"4":[5,1]}']
    assert main([*common, *arguments, "-o", str(tmp_path / "b.png")]) == 0
    for flags, message in (
        (["--tokens", "600"], "600 visual tokens was asked for; a picture has 36 at most"),
        (["--method-arg", "merge"], "write NAME=VALUE"),
        (["--image", str(tmp_path / "none.png")], "no picture at"),
        (["--image", str(model / "config.json")], "cannot be read as a picture"),
    ):
        assert main([*common, *flags]) == 2
        assert message in capsys.readouterr().err


def test_show_is_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "visiondrop.show", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--method-arg" in done.stdout


def test_ledger_text() -> None:
    sample = traced().samples[0]
    assert ledger_text(sample) == (
        "visual tokens  layers 0-1: 18,  layers 2-3: 13,  layers 4-7: 6;  mean 10.75"
    )
