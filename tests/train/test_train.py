"""LLaVA's recipe: what is learned, what stays frozen, what is written, and that it goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from llava.conversation import conv_templates
from llava.train.conversations import IGNORE, encode, pieces, read_samples
from llava.train.pocket_model import make_tokenizer
from llava.train.trainer import ModalitySampler

from .tiny import write_checkpoint, write_data

ROOT = Path(__file__).resolve().parents[2]
TURNS = [
    {"from": "human", "value": "<image>\nWhat color is the star?"},
    {"from": "gpt", "value": "red"},
    {"from": "human", "value": "Is there a ring?"},
    {"from": "gpt", "value": "no"},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny-llava"))


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    base = ["--use_cpu", "True", "--report_to", "none", "--per_device_train_batch_size", "2"]
    return subprocess.run(
        [sys.executable, "-m", "llava.train.train", *base, *flags],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("version", ["v1", "chatml_direct", "llava_llama_2", "mistral_instruct"])
def test_pieces_are_the_inference_prompt_and_the_answers(version):
    parts = pieces(TURNS, version)
    conv = conv_templates[version].copy()
    conv.messages = []
    for i, turn in enumerate(TURNS[:3]):
        conv.append_message(conv.roles[i % 2], turn["value"])
    conv.append_message(conv.roles[1], None)
    text = "".join(t for t, _ in parts)
    assert text.startswith(conv.get_prompt())  # the prompt that asks for the second answer
    learned = [t for t, flag in parts if flag]
    assert len(learned) == 2 and "red" in learned[0] and "no" in learned[1]
    assert "star" not in "".join(learned)


def test_labels_are_the_answers_and_the_end():
    tok = make_tokenizer()
    image = tok.convert_tokens_to_ids("<image>")
    ids, labels = encode(pieces(TURNS, "v1"), tok, image, 576, 2048)
    assert int((ids == image).sum()) == 576
    kept = labels[labels != IGNORE]
    assert tok.decode(kept) == " red</s> no</s>"
    assert torch.equal(kept, ids[labels != IGNORE])
    stock = tok("".join(t for t, _ in pieces(TURNS, "v1")).replace("<image>", "<image>" * 576))
    assert ids.tolist() == stock.input_ids


def test_modality_sampler_takes_each_once_and_does_not_mix_kinds():
    lengths = [(i % 30 + 1) * (-1 if i % 3 == 0 else 1) for i in range(100)]
    sampler = ModalitySampler(lengths, 4, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(100))
    batches = [order[i : i + 4] for i in range(0, 96, 4)]
    pure = [len({lengths[i] > 0 for i in b}) == 1 for b in batches]
    assert sum(pure) >= len(batches) - 1
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_broken_data_is_named(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('[{"conversations": [{"from": "robot", "value": "hi"}]}]')
    with pytest.raises(ValueError, match="sample 0"):
        read_samples(path)
    path.write_text("[")
    with pytest.raises(ValueError, match="not valid json"):
        read_samples(path)


@pytest.mark.slow
def test_alignment_tunes_the_projector_alone_and_tuning_takes_it_up(tmp_path, checkpoint):
    data = write_data(tmp_path / "plain", plain=True)
    folder = ["--image_folder", str(data.parent), "--data_path", str(data)]
    common = [
        "--model_name_or_path",
        str(checkpoint),
        "--max_steps",
        "2",
        "--learning_rate",
        "1e-2",
    ]
    done = run(*common, *folder, "--version", "plain", "--tune_mm_mlp_adapter", "True",
               "--output_dir", str(tmp_path / "align"))  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    projector = load_file(tmp_path / "align" / "mm_projector.safetensors")
    assert set(projector) == {
        f"model.mm_projector.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")
    }
    old = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    before = old.model.multi_modal_projector.linear_1.weight
    assert not torch.equal(projector["model.mm_projector.0.weight"], before)

    data = write_data(tmp_path / "tune")
    done = run(*common, "--data_path", str(data), "--image_folder", str(data.parent),
               "--pretrain_mm_mlp_adapter", str(tmp_path / "align"),
               "--mm_projector_lr", "0", "--group_by_modality_length", "True",
               "--output_dir", str(tmp_path / "tuned"))  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    new = LlavaForConditionalGeneration.from_pretrained(tmp_path / "tuned", dtype=torch.float32)
    AutoTokenizer.from_pretrained(tmp_path / "tuned")
    assert (tmp_path / "tuned" / "preprocessor_config.json").is_file()
    # Rate 0 for the projector: it is the aligned one; the tower is frozen; the LM moved.
    got = new.model.multi_modal_projector.linear_1.weight
    assert torch.equal(got, projector["model.mm_projector.0.weight"])
    for (n, a), b in zip(
        old.model.vision_tower.named_parameters(), new.model.vision_tower.parameters(), strict=True
    ):
        assert torch.equal(a, b), n
    a, b = (m.model.language_model.layers[0].mlp.up_proj.weight for m in (old, new))
    assert not torch.equal(a, b)
