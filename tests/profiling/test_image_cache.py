"""The benchmark of the image cache: that its figures are what it says. No time is judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import image_cache
from llava.eval.errors import EvalError
from llava.eval.samples import Sample
from tests.eval.conftest import shared_data, tiny_model  # noqa: F401
from visiondrop.profiling import LLAVA_15_7B, prefill_flops


def test_run_and_files(tiny_model: Any, shared_data: Any, tmp_path: Any) -> None:  # noqa: F811
    out, table = tmp_path / "new" / "t.json", tmp_path / "t.md"
    cases = image_cache.main(
        [
            *("--model-path", str(tiny_model), "--benchmark", "textvqa"),
            *("--data", str(shared_data.folder), "--each", "1", "4", "--questions", "4"),
            *("--batch-size", "3", "--tokens", "9", "--repeats", "2", "--max-new-tokens", "2"),
            *("--device", "cpu", "--clock", "processor"),
            *("--json", str(out), "--markdown", str(table)),
        ]
    )
    assert [(c.method, c.each) for c in cases] == [
        ("full", 1), ("full", 4), ("visiondrop", 1), ("visiondrop", 4),
    ]  # fmt: skip
    for case in cases:
        assert case.same_texts == 4 and 1 <= case.new_tokens <= 2
        assert set(case.rates) == {"cache", "off", "apart"} and min(case.rates.values()) > 0
        assert case.over_off[1] <= case.over_off[0] <= case.over_off[2]
    assert cases[0].tokens == 36 and abs(cases[2].tokens - 9) <= 0.25
    assert len(json.loads(out.read_text())["cases"]) == 4
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4 and "all 4 texts of every cell" in table.read_text()


def test_questions_are_taken_picture_by_picture() -> None:
    samples = [Sample(i, "?", name) for i, name in enumerate("aabbabcb")]
    assert [s.question_id for s in image_cache.choose(samples, 4, 2)] == [0, 1, 2, 3]
    assert [s.image for s in image_cache.choose(samples, 6, 3)] == [*"aaabbb"]
    assert [s.image for s in image_cache.choose(samples, 3, 1)] == [*"abc"]
    with pytest.raises(EvalError, match="the data has 2 such pictures: give fewer"):
        image_cache.choose(samples, 9, 3)


def test_flops_of_one_question_are_those_of_a_whole_prompt() -> None:
    """And of many, the question's own: the limit is whole prompts over what a question adds."""
    for name, tokens in (("full", 576), ("visiondrop", 64)):
        assert image_cache.flops_ratio(name, tokens, 1) == pytest.approx(1)
        rising = [image_cache.flops_ratio(name, tokens, each) for each in (1, 3, 6, 18)]
        assert rising == sorted(rising)
    whole, begin = (prefill_flops(LLAVA_15_7B, [576] * 32, text) for text in (66, 35))
    limit = (whole.total - whole.tower) / (whole.decoder - begin.decoder + whole.lm_head)
    assert image_cache.flops_ratio("full", 576, 10**7) == pytest.approx(limit, rel=1e-4)
