"""Two processes that hold a model's heads between them keep what one process keeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.visiondrop.matrix import METHODS
from tests.visiondrop.models import tiny
from tests.visiondrop.sharded import NAMES, REFUSED, SEVERAL, told
from visiondrop import Random
from visiondrop.parallel import all_heads, group_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "tests.visiondrop.sharded", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def alone(name, **sizes):
    """The same in this process, with whole heads."""
    return json.loads(json.dumps(told(tiny(**sizes), METHODS[name])))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_keeps_and_says_the_same(ranks, name):
    first, second = (rank["all"][name] for rank in ranks)
    assert first == second == alone(name)


@pytest.mark.parametrize("name", SEVERAL)
def test_grouped_queries(ranks, name):
    first, second = (rank["grouped"][name] for rank in ranks)
    assert first == second == alone(name, kv_heads=2)


@pytest.mark.parametrize("name", SEVERAL)
def test_control_without_the_others_heads(ranks, name):
    """Left to their own heads, the processes keep something else, and each its own."""
    assert ranks[0]["own heads"][name] != alone(name)
    first, second = (rank["own heads, own choice"][name]["stages"] for rank in ranks)
    assert first != second


def test_the_first_process_decides(ranks):
    method = Random(9, seed=0) + Random(4, seed=0, layer=2)
    expected = json.loads(json.dumps(told(tiny(), method)))
    assert ranks[0]["two opinions"] == ranks[1]["two opinions"] == expected


def test_control_without_the_first_process(ranks):
    assert ranks[0]["own choice"]["stages"] != ranks[1]["own choice"]["stages"]


def test_what_cannot_be_is_refused(ranks):
    for rank in ranks:
        assert set(rank["refused"]) == set(REFUSED)
        for said in rank["refused"].values():
            assert "under tensor parallelism is not supported: it switches off heads" in said
        assert (
            "1 attention heads (query or key-value) do not divide evenly over 2"
            in rank["one kv head"]
        )
        assert "tensor-parallel size of 1" in rank["one kv head"]


def test_missing_heads_are_never_taken_for_all():
    """A layer cut by something unknown: two of four heads, and no group to ask for the others."""
    half = torch.nn.Linear(8, 16, bias=False)
    assert group_of(half) is None
    with pytest.raises(ValueError, match="fewer than the model's 4 heads"):
        all_heads(half, half(torch.randn(1, 3, 8)), 4, 8)
