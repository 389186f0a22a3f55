"""docs/reproduce.md: made anew it is the same, it has every number, and every command is right."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from llava.data.registry import SOURCES, get_source
from llava.eval.benchmarks import get_benchmark
from llava.eval.cli import parse_method_args
from llava.eval.planning import plan_runs
from llava.eval.published import BENCHMARK_NAMES, figures
from llava.eval.published.reproduce import CHECKPOINT, CLIP, MODEL, NEXT, text
from llava.eval.run_benchmark import parser
from visiondrop import VisionDrop
from visiondrop.adapters import Geometry

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDE = (REPOSITORY / "docs" / "reproduce.md").read_text(encoding="utf-8")
LLAVA_7B = Geometry(num_layers=32, num_patches=576, has_cls=True, grid=(24, 24))
COMMAND = re.compile(r"(?:[A-Z]+=\S+ )+bash scripts/eval/\w+\.sh[^`\n]*")
TINY_CLIP = str(REPOSITORY / "tests/golden/tiny-clip-full-336")


def table_rows() -> list[list[str]]:
    """Rows of the cells that have a command."""
    rows = [line.strip("| ").split(" | ") for line in GUIDE.splitlines() if "bash scripts" in line]
    return [row for row in rows if len(row) == 5]


def test_it_is_up_to_date() -> None:
    assert text() == GUIDE, "run: python -m llava.eval.published.reproduce > docs/reproduce.md"


def test_every_published_score_is_there_once() -> None:
    names = {*BENCHMARK_NAMES.values(), "MME_perception"}
    shown = Counter(re.findall(r"([\d.]+)(?: perception)? \[([a-z-]+)\]", GUIDE))
    known = Counter(
        (f"{f.value:g}", f.source)
        for f in figures()
        if f.model in (MODEL, NEXT) and f.benchmark in names
    )
    assert shown == known and sum(known.values()) > 600
    rows = {row[0].strip("`"): row for row in table_rows() if "/gqa.sh" in row[4]}
    assert "61.92 [visiondrop-note]" in rows["full"][3]


def test_every_command_can_be_run_as_far_as_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, names, splits and budgets, on the geometry of LLaVA-1.5 7B."""
    commands = [command.strip() for command in COMMAND.findall(GUIDE)]
    assert len(commands) == len(table_rows()) + 3 > 300  # three of the ablation
    means: dict[tuple[str, ...], float] = {}
    for command in commands:
        words = shlex.split(command)
        at = words.index("bash")
        given = dict(word.split("=", 1) for word in words[:at])
        assert given.keys() <= {"DATA", "SPLIT", "METHODS", "TOKENS", "BUDGET"}
        script = REPOSITORY / words[at + 1]
        assert script.is_file() and given["DATA"] == f"$ROOT/{script.stem}"
        get_benchmark(script.stem, given.get("SPLIT"))
        for name in ("DATA", "SPLIT", "METHODS", "TOKENS", "BUDGET"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        args = parser().parse_args([script.stem, *words[at + 2 :]])
        assert (args.methods, args.tokens) == (given["METHODS"], given.get("TOKENS"))
        tokens = [int(args.tokens)] if args.tokens else []
        key = (args.methods, args.tokens or "", args.budget, *(args.method_arg or ()))
        if key not in means:
            fields = parse_method_args(args.method_arg)
            if "clip" in fields:
                assert fields["clip"] == CLIP
                fields["clip"] = TINY_CLIP
            (run,) = plan_runs([args.methods], tokens, [0], LLAVA_7B, fields, budget=args.budget)
            means[key] = sum(run.ledger) / len(run.ledger)
    for method, count, mean, _, command in table_rows():
        found = re.search(r"BUDGET=(\w+)", command)
        clip = f"clip={CLIP}" if CLIP in command else None
        key = (method.strip("`"), "" if method == "`full`" else count)
        key += (found.group(1) if found else "average", *([clip] if clip else []))
        assert f"{means[key]:.1f}" == mean
        # What the command gives is the paper's count where it counts averages.
        assert found or abs(float(mean) - int(count)) <= 1


def test_every_download_is_known() -> None:
    found = re.findall(r"prepare\.py (\w+) --root \$ROOT(?: --split (\S+))?`", GUIDE)
    assert {name for name, _ in found} == set(SOURCES), "clips are fetched by hand"
    for name, split in found:
        get_source(name, split or None)


def test_what_it_says_of_visiondrop() -> None:
    by_preset = VisionDrop(encoder=(42, 6), llm={8: (30, 5), 16: (22, 4), 24: (16, 3)})
    assert VisionDrop.from_average(32, num_layers=32) == by_preset
    assert f"export MODEL={CHECKPOINT} " in GUIDE
    assert "no number here is\nours" in GUIDE
