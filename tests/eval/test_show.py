"""The show command on an original LLaVA checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from llava.eval import show
from llava.eval.errors import run_main
from tests.eval.conftest import TinyData

GOLDEN = Path(__file__).parents[1] / "golden"


def test_show_draws_an_original_checkpoints_choice(
    shared_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "kept.png"
    args = ["--model", str(GOLDEN / "tiny-llava-v1.5"), "--tokens", "32", "-o", str(out)]
    args += ["--image", str(shared_data.images / "picture4.png"), "--max-new-tokens", "2"]
    assert run_main(show.main, args) == 0
    text = capsys.readouterr().out
    assert (
        "layers 0-7: 48,  layers 8-15: 35,  layers 16-23: 26,  layers 24-31: 19;  mean 32" in text
    )
    with Image.open(out) as drawing:
        assert drawing.width > drawing.height > 300


def test_bad_input_is_one_line(
    tiny_model: Path,
    shared_data: TinyData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = str(shared_data.images / "picture0.png")
    for args, message in (
        (["--model", str(tiny_model), "--image", "nowhere.png"], "no picture at nowhere.png"),
        (["--model", "nowhere/at/all", "--image", picture], "nowhere/at/all"),
        (["--model", str(tiny_model), "--image", picture, "--tokens", "99"], "99"),
        (["--model", str(tiny_model), "--image", picture, "--method-arg", "a=1"], "'a'"),
    ):
        assert run_main(show.main, [*args, "-o", str(tmp_path / "kept.png")]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error
    assert not (tmp_path / "kept.png").exists()
