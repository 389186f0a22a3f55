"""Several processes and nodes: one run, byte for byte, also where one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from llava.eval.answers import take_answers
from llava.eval.errors import EvalError, run_main
from llava.eval.processes import Group, current_group, launch, share
from llava.eval.run_benchmark import main
from tests.eval.conftest import TinyData, write_data
from tests.eval.test_run_benchmark import flags, read, result

CELL = Path("textvqa") / "visiondrop-9"


@pytest.fixture(scope="module")
def more_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """42 questions, 14 batches."""
    return write_data(tmp_path_factory.mktemp("more") / "textvqa", pictures=7, questions_each=6)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, more_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("whole")
    assert main(command(tiny_model, more_data, out)) == 0
    return out / CELL


def command(model: Path, data: TinyData, out: Path) -> list[str]:
    return flags(model, data, out, "--methods", "visiondrop", "--max-new-tokens", "12")


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 16, 17])
def test_shares_are_even_and_lose_nothing(count: int, size: int) -> None:
    batches = [3 * k for k in range(count)]
    shares = [share(batches, rank, size) for rank in range(size)]
    assert sum(shares, []) == batches
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    devices = [Group(rank, 3, rank).device("auto") for rank in range(3)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]
    assert Group(1, 3, 1).device("cpu") == "cpu" and Group().device("auto") == "auto"


def test_alone_unless_torchrun_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert current_group() == Group()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert current_group() == Group()


def test_a_failure_at_once_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        EvalError, match=r"of 2 stopped \(exit status 2.*run the same command again"
    ):
        launch("json.tool", ["--no-such-flag"], 2)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_two_nodes_are_one_run(
    tiny_model: Path, more_data: TinyData, whole: Path, tmp_path: Path
) -> None:
    """Two torchruns of one process each that share a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = command(tiny_model, more_data, tmp_path)
    at = args.index("--nproc")
    del args[at : at + 2]  # torchrun's own, and it takes ours for it
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--node_rank", str(rank), "--nproc_per_node", "1"),
                *("--master_addr", "127.0.0.1", "--master_port", str(port)),
                *("-m", "llava.eval.run_benchmark", *args),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    shown = [node.communicate(timeout=1200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "VisionDrop" not in shown[1] and "visiondrop" in shown[0], "one of them tells"
    found = result(tmp_path / CELL)
    assert [process["rank"] for process in found["processes"]] == [0, 1]
    assert all(process["computed"] >= 0.4 * 42 for process in found["processes"])
    assert found["computed"] == 42
    assert found["score"] == result(whole)["score"]
    assert found["near_ties"] == result(whole)["near_ties"]
    answers = (tmp_path / CELL / "answers.jsonl").read_bytes()
    assert answers == (whole / "answers.jsonl").read_bytes()
    assert not list((tmp_path / CELL).glob("*.partial*"))


@pytest.mark.slow
def test_a_process_that_dies_loses_nothing(
    tiny_model: Path,
    more_data: TinyData,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGKILL to one of two while it answers."""
    args = command(tiny_model, more_data, tmp_path)
    part = tmp_path / CELL / "answers.jsonl.partial.1of2"

    def kill() -> None:
        while not (part.exists() and part.read_bytes().count(b"\n") > 1):
            time.sleep(0.001)
        for child in psutil.Process().children():
            if child.environ().get("RANK") == "1":
                child.kill()

    threading.Thread(target=kill, daemon=True).start()
    assert run_main(main, [*args, "--nproc", "2"]) == 2
    error = capsys.readouterr().err
    assert "process 1 of 2 stopped (killed by SIGKILL)" in error
    assert "what was answered is kept; run the same command again to go on" in error
    files = (tmp_path / CELL).glob("*.partial.*of2")
    kept = sum(row.count(b'"batch"') for file in files for row in file.read_bytes().splitlines())
    assert 0 < kept < 14 and not (tmp_path / CELL / "answers.jsonl").exists()
    assert main(args) == 0
    answers = (tmp_path / CELL / "answers.jsonl").read_bytes()
    assert answers == (whole / "answers.jsonl").read_bytes()
    assert result(tmp_path / CELL)["computed"] == 42 - 3 * kept
    assert len(read(tmp_path / CELL / "answers.jsonl")) == 42


def hold(path: Path, note: Path) -> None:
    """What a run with a process that prepares pictures looks like to others."""
    lock = take_answers(path)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,))
    worker.start()
    note.with_suffix(".tmp").write_text(str(worker.pid))
    note.with_suffix(".tmp").rename(note)
    signal.pause()
    lock.close()


def test_two_commands_into_one_file(
    tiny_model: Path, more_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused while the first lives, however it died not a moment longer."""
    note = tmp_path / "worker"
    first = multiprocessing.get_context("fork").Process(
        target=hold, args=(tmp_path / CELL / "answers.jsonl", note)
    )
    first.start()
    while not note.exists():
        assert first.is_alive()
        time.sleep(0.002)
    worker = int(note.read_text())
    try:
        args = command(tiny_model, more_data, tmp_path)
        assert run_main(main, args) == 2
        assert "another run is writing" in capsys.readouterr().err
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        assert psutil.pid_exists(worker), "its worker lives on, and holds nothing"
        take_answers(tmp_path / CELL / "answers.jsonl").close()
    finally:
        os.kill(worker, signal.SIGKILL)
