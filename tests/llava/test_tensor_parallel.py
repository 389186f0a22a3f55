"""The pocket model spread over two processes keeps and answers what it does in one."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.model.builder import load_pretrained_model
from llava.model.tensor_parallel import load_tensor_parallel
from tests.llava.sharded_pocket import METHODS, POCKET, told

ROOT = Path(__file__).resolve().parents[2]


def missing(engine):
    """Why an engine cannot run here; None where it can."""
    if engine == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            return "deepspeed is not installed"
        if shutil.which("g++") is None and shutil.which("c++") is None:
            return "DeepSpeed compiles its CPU communication at first use: no C++ compiler here"
    return None


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found, with every engine that is there."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "tests.llava.sharded_pocket", str(out)]
    command += [engine for engine in ("deepspeed", "transformers") if missing(engine) is None]
    # A folder of its own for what DeepSpeed compiles, so that no stale lock is waited for.
    extensions = str(tmp_path_factory.mktemp("extensions"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": extensions}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone():
    """The same in this process."""
    loaded = load_pretrained_model(POCKET, None, "pocket-llava", device="cpu")
    return {name: json.loads(json.dumps(told(loaded, m))) for name, m in METHODS.items()}


@pytest.fixture(params=["deepspeed", "transformers"])
def engine(request):
    if reason := missing(request.param):
        pytest.skip(reason)
    return request.param


@pytest.mark.slow
def test_same_tokens_and_same_texts(ranks, alone, engine):
    for rank in ranks:
        assert rank[engine]["heads here"] == 2
        for name in METHODS:
            assert rank[engine][name]["stages"] == alone[name]["stages"]
            assert rank[engine][name]["texts"] == alone[name]["texts"]
    stages = alone["visiondrop"]["stages"]
    assert len(stages) == 3 and all(len(sample) == 4 for sample in stages)


@pytest.mark.slow
def test_control_without_the_others_heads(ranks, alone, engine):
    """Left to their own heads, the processes keep something else, and each its own."""
    first, second = (rank[engine]["own heads"]["stages"] for rank in ranks)
    assert first != second
    assert first != alone["visiondrop"]["stages"] != second


@pytest.mark.slow
def test_original_layout(ranks):
    for rank in ranks:
        spread, whole = rank["original"]["kept"]
        assert spread == whole and len(whole) == 4
        assert rank["original"]["difference"] < 1e-4


@pytest.mark.slow
def test_numbers_of_the_first_process(ranks):
    assert [rank["same"] for rank in ranks] == [[3, 1], [3, 1]]


def test_refused_before_any_weight_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="needs several processes: start the command with"):
        load_tensor_parallel(POCKET, None, "pocket-llava")
    monkeypatch.setenv("WORLD_SIZE", "3")
    folder = tmp_path / "pocket-llava"
    folder.mkdir()
    for file in Path(POCKET).glob("*.json"):
        shutil.copy(file, folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"4 attention heads .* 3 processes; choose .* 1, 2, 4"):
        load_tensor_parallel(str(folder), None, "pocket-llava", "transformers", device="cpu")
    with pytest.raises(ValueError, match="engine 'megatron' is not known"):
        load_tensor_parallel(POCKET, None, "pocket-llava", "megatron", device="cpu")  # type: ignore[arg-type]
