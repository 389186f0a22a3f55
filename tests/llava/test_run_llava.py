"""`python -m llava.eval.run_llava` and the image processor of each layout."""

import json

import pytest
import torch
from PIL import Image

from llava.eval import run_llava
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.utils import disable_torch_init
from tests.llava import forms


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "llava-tiny"
    return forms.write_v15(folder, forms.stock_model(), forms.sentencepiece_model())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    files = []
    for i, colour in enumerate(((200, 30, 30), (20, 40, 220))):
        files.append(str(folder / f"{i}.png"))
        Image.new("RGB", (80 + 30 * i, 60), colour).save(files[-1])
    return files


def run(capsys, *flags):
    code = run_llava.main([str(flag) for flag in flags])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_answer_is_the_model_s(capsys, checkpoint, pictures):
    flags = ["--model-path", checkpoint, "--image-file", ",".join(pictures), "--query", "What?",
             "--temperature", 0, "--max_new_tokens", 6, "--conv-mode", "vicuna_v1"]  # fmt: skip
    code, out, _ = run(capsys, *flags)
    tokenizer, model, processor, _ = load_pretrained_model(str(checkpoint), None, "x", device="cpu")
    prompt = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "<image>\nWhat? ASSISTANT:"
    )
    ids = torch.tensor([tokenizer_image_token(prompt, tokenizer)])
    images = process_images([Image.open(file) for file in pictures], processor, model.config)
    new = model.generate(ids, images=images, do_sample=False, max_new_tokens=6)
    expected = tokenizer.decode(new[0], skip_special_tokens=True).strip()
    assert code == 0 and out.strip() == expected and expected
    placed = run(capsys, *flags[:5], "<image-placeholder>\n<image-placeholder>\nWhat?", *flags[6:])
    assert placed[1] == out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--image-file", "none.png"], "none.png"),
        (["--conv-mode", "vicuna_v9"], "vicuna_v9"),
        (["--query", "<image-placeholder> <image-placeholder>"], "2 <image-placeholder> but 1"),
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--model-path", "no/such/model"], "does not exist"),
        (["--tokens", "64"], "--method"),
    ],
)
def test_bad_input_is_one_line(capsys, checkpoint, pictures, changes, said):
    flags = {"--model-path": checkpoint, "--image-file": pictures[0], "--query": "What?"}
    flags.update(zip(changes[::2], changes[1::2], strict=True))
    code, out, err = run(capsys, *[part for pair in flags.items() for part in pair])
    assert code == 1 and out == "" and said in err and len(err.strip().splitlines()) == 1


def test_start_and_end_around_each_picture():
    question = run_llava.build_question("Q", 2, start_end=True)
    assert question == "<im_start><image><im_end>\n<im_start><image><im_end>\nQ"


def test_image_processor_of_each_layout(tmp_path, checkpoint):
    image = Image.effect_noise((90, 70), 60).convert("RGB")
    tokenizer, model, original, _ = load_pretrained_model(str(checkpoint), None, "x", device="cpu")
    expected = process_images([image], original, model.config)
    assert original.crop_size["height"] == forms.SIDE

    model.save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    settings = original.to_dict()
    for name, content in (
        ("preprocessor_config.json", settings),
        (
            "processor_config.json",
            {"image_processor": settings, "processor_class": "LlavaProcessor"},
        ),
    ):
        (tmp_path / "stock" / name).write_text(json.dumps(content))
        _, stock, processor, _ = load_pretrained_model(
            str(tmp_path / "stock"), None, "x", device="cpu"
        )
        assert torch.equal(process_images([image], processor, stock.config), expected)
        (tmp_path / "stock" / name).unlink()
    # Neither file: CLIP's own settings at the tower's resolution.
    processor = load_pretrained_model(str(tmp_path / "stock"), None, "x", device="cpu")[2]
    assert torch.equal(process_images([image], processor, stock.config), expected)


def test_disable_torch_init_patches_nothing():
    before = torch.nn.Linear.reset_parameters, torch.nn.LayerNorm.reset_parameters
    disable_torch_init()
    assert (torch.nn.Linear.reset_parameters, torch.nn.LayerNorm.reset_parameters) == before
