"""The benchmark of batch sizes: that its figures are what it says. No time is judged."""

import json
import statistics

import pytest

from benchmarks import throughput
from tests.eval.conftest import shared_data, tiny_model  # noqa: F401


def test_ratios_are_within_a_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets ten times slower between the repeats changes no ratio."""
    pace = iter([1.0] * 6 + [10.0] * 4)

    def answer(loaded, method, prepared, samples, batch, *rest):
        return next(pace) * (2 / batch + 1), [f"text {min(batch, 4)}"] * len(samples), 7.0

    class Loaded:
        class model:
            class device:
                type = "cpu"

    monkeypatch.setattr(throughput, "answer", answer)
    full, other = (type(n, (), {"name": n})() for n in "ab")
    cases = throughput.measure(
        Loaded, [full, other], [None] * 4, [None] * 4, [1, 4], None, 2, "wall"
    )
    assert [(case.method, case.batch) for case in cases] == [
        ("a", 1), ("a", 4), ("b", 1), ("b", 4),
    ]  # fmt: skip
    for case in cases:
        assert case.ratio == pytest.approx(3 / (2 / case.batch + 1))
        assert case.ratio_quartiles == pytest.approx((case.ratio, case.ratio))
        assert case.same_texts == (4 if case.batch == 1 else 0)
        assert case.rate == pytest.approx(statistics.mean([1, 0.1]) * 4 / (2 / case.batch + 1))


def test_run_and_files(tiny_model, shared_data, tmp_path, capsys) -> None:  # noqa: F811
    out, table = tmp_path / "new" / "t.json", tmp_path / "t.md"
    cases = throughput.main(
        [
            *("--model-path", str(tiny_model), "--data", str(shared_data.folder)),
            *("--batch-sizes", "2", "5", "--tokens", "9", "--questions", "5", "--repeats", "2"),
            *("--max-new-tokens", "2", "--device", "cpu", "--clock", "processor"),
            *("--json", str(out), "--markdown", str(table)),
        ]
    )
    assert [(c.method, c.batch) for c in cases] == [
        (method, batch) for method in ("full", "visiondrop") for batch in (1, 2, 5)
    ]
    assert cases[0].tokens == 36 and abs(cases[3].tokens - 9) <= 0.25
    assert all(case.rate > 0 and case.same_texts == 5 for case in cases)
    assert all(case.ratio == 1 for case in cases if case.batch == 1)
    written = json.loads(out.read_text())
    assert len(written["cases"]) == 6 and written["questions"] == 5
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    assert "All texts are those of batch 1" in table.read_text()
    assert "All texts" in " ".join(capsys.readouterr().out.split())
