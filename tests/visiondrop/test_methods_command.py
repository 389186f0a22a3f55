"""`python -m visiondrop.methods`: it says what the classes hold, and fits the terminal."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from visiondrop.adapters import Geometry
from visiondrop.methods import METHODS
from visiondrop.methods.__main__ import main, markdown_table, options_of
from visiondrop.reducer import Reducer

REPOSITORY = Path(__file__).resolve().parents[2]
LLAVA_7B = Geometry(num_layers=32, num_patches=576, has_cls=True, grid=(24, 24))
CONTROLS = {"full", "random", "uniform"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name: str) -> None:
    cls = METHODS[name]
    assert cls.name == name
    assert cls.title and cls.where and cls.signal
    ours = name in CONTROLS or "(ours)" in (cls.__doc__ or "")
    assert ours or re.search(r"arXiv \d{4}\.\d{5}", cls.paper)
    assert len((cls.__doc__ or "").splitlines()) >= (1 if name in CONTROLS else 5)
    assert dataclasses.is_dataclass(cls)


@pytest.mark.parametrize(
    ("name", "preset"), [(n, p) for n, cls in METHODS.items() for p in cls.presets]
)
def test_presets_are_settings_of_the_papers_model(name: str, preset: str) -> None:
    """Each makes the method, which goes to JSON and back and fits LLaVA-1.5 7B."""
    cls = METHODS[name]
    method = cls(**cls.presets[preset])
    again = Reducer.from_dict(json.loads(json.dumps(method.to_dict())))
    assert again.to_dict() == method.to_dict()
    if not set(cls.needs) & {"crops", "text encoder"}:
        method.check(LLAVA_7B)
        assert 0 < max(method.ledger(32)) <= 577


@pytest.mark.parametrize("width", [50, 80, 132])
def test_it_fits_the_terminal_and_holds_every_option(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--width", str(width)]) == 0
    lines = capsys.readouterr().out.splitlines()
    too_long = [line for line in lines if len(line) > max(width, 70)]
    assert too_long == []
    starts = [line.split()[0] for line in lines[2:] if line and not line.startswith(" ")]
    assert starts == list(METHODS)
    flat = " ".join(" ".join(lines).split())
    for cls in METHODS.values():
        for name in options_of(cls):
            assert re.search(rf"\b{name}(=|,|$)", flat)


def test_some_methods_at_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visiondrop", "random", "--width", "100"]) == 0
    out = capsys.readouterr().out
    assert "merge=sum" in out and "released code's behaviour" in out and "seed=0" in out
    assert "visionzip" not in out
    assert main(["visiondorp"]) == 2
    assert "unknown method 'visiondorp'; known: visiondrop" in capsys.readouterr().err


def test_json_is_the_whole_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == list(METHODS)
    for entry in entries:
        cls = METHODS[entry["name"]]
        assert set(entry["options"]) == {f.name for f in dataclasses.fields(cls)}
        assert entry["needs"] == list(cls.needs)


def test_the_guide_holds_the_table_as_it_is_printed() -> None:
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- methods:begin -->\n(.*?)<!-- methods:end -->", text, re.S)
    assert found is not None
    assert found.group(1) == markdown_table(METHODS.values()), (
        "put the output of `python -m visiondrop.methods --markdown` between the marks"
    )


def test_as_a_command_without_rich() -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "import runpy; sys.argv = ['m', '--width', '80']\n"
        "runpy.run_module('visiondrop.methods', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "VisionDrop" in done.stdout and "Warning" not in done.stderr
