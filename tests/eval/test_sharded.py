"""A model spread over two processes answers a benchmark, and one of them keeps the answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval.errors import EvalError
from llava.eval.run_benchmark import main
from tests.eval.conftest import TinyData
from tests.eval.test_run_benchmark import flags, read, result

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_go_on_where_one_was(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    """The same answers, of a run that is begun and of one that is not, and no file beside them."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    more = ["--methods", "visiondrop,fastv", "--tokens", "12", "--device", "cpu"]
    assert main(flags(tiny_model, shared_data, alone, *more)) == 0
    begun = together / "textvqa" / "visiondrop-12"
    shutil.copytree(alone / "textvqa" / "visiondrop-12", begun)
    (begun / "result.json").unlink()
    lines = (begun / "answers.jsonl").read_text().splitlines(keepends=True)
    (begun / "answers.jsonl").write_text("".join(lines[:9]))

    argv = flags(tiny_model, shared_data, together, *more, "--sharded-by", "transformers")
    at = argv.index("--nproc")  # which torchrun takes for a short form of a flag of its own
    del argv[at : at + 2]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + ["-m", "llava.eval.run_benchmark", *argv, "--tensor-parallel", "2"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("over 2 processes, by transformers") == 1
    for name, computed in (("visiondrop-12", 11), ("fastv-12", 20)):
        first, second = (out / "textvqa" / name for out in (alone, together))
        assert read(first / "answers.jsonl") == read(second / "answers.jsonl")
        there = result(second)
        assert there["tensor_parallel"] == 2 and there["computed"] == computed
        assert there["score"] == result(first)["score"]
    assert not list(temporary.rglob("answers.jsonl")), "a follower left its answers behind"


def test_another_launch_is_refused(tiny_model: Path, shared_data: TinyData, tmp_path: Path) -> None:
    argv = flags(tiny_model, shared_data, tmp_path, "--tensor-parallel", "2")
    with pytest.raises(EvalError, match=r"in a launch of 1 process.*--nproc_per_node 2"):
        main(argv)


def test_flags_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    base = flags(tiny_model, shared_data, tmp_path, "--tensor-parallel", "2")
    with pytest.raises(EvalError, match="leave NPROC out"):
        main([*base, "--nproc", "4"])
    with pytest.raises(EvalError, match="do not go with --tensor-parallel"):
        main([*base, "--load-4bit"])
