"""Two steps under ZeRO-2 and ZeRO-3, on a CPU, through the training command itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from .tiny import write_checkpoint, write_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def extensions(tmp_path_factory):
    """DeepSpeed's compiled parts: a folder of its own, so that no stale lock is waited for."""
    return tmp_path_factory.mktemp("extensions")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [2, 3])
def test_two_steps(tmp_path, extensions, stage):
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("DeepSpeed compiles its CPU communication at first use: no C++ compiler here")
    pytest.importorskip("deepspeed")
    checkpoint = write_checkpoint(tmp_path / "tiny-llava")
    data = write_data(tmp_path / "data")
    out = tmp_path / "out"
    config = ROOT / "scripts" / "train" / f"zero{stage}.json"
    flags = {
        "model_name_or_path": checkpoint, "data_path": data, "image_folder": data.parent,
        "output_dir": out, "deepspeed": config, "max_steps": 2, "learning_rate": 1e-2,
        "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    alone = {
        "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(extensions), "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29610 + stage + os.getpid() % 300),
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "llava.train.train"]
        + [x for k, v in flags.items() for x in (f"--{k}", str(v))],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **alone},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2
    old = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    new = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    a, b = (m.model.language_model.layers[0].mlp.up_proj.weight for m in (old, new))
    assert a.shape == b.shape and not torch.equal(a, b) and torch.isfinite(b).all()
