"""What holds for every benchmark: a name, a script, a folder, an error where files are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.eval.benchmarks import BENCHMARKS, get_benchmark
from llava.eval.errors import EvalError

REPOSITORY = Path(__file__).parents[2]


def test_every_benchmark_has_a_script() -> None:
    scripts = {path.stem for path in (REPOSITORY / "scripts" / "eval").glob("*.sh")}
    assert scripts == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_names_and_missing_files(name: str, tmp_path: Path) -> None:
    benchmark = get_benchmark(name)
    assert benchmark.name == name and benchmark.title and benchmark.metric
    assert benchmark.default_data.startswith("playground/data/eval/")
    with pytest.raises(EvalError) as error:
        benchmark.files(tmp_path / "nowhere")
    message = str(error.value)
    assert message.startswith(benchmark.title) and "nowhere" in message and "\n" not in message
    assert "docs/evaluation.md" in message and "DATA or --data" in message


def test_unknown_names() -> None:
    with pytest.raises(EvalError, match="unknown benchmark 'popo'; known are .*pope"):
        get_benchmark("popo")
