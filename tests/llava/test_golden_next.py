"""A LLaVA-NeXT-shaped checkpoint against the original LLaVA code (golden figures).

The golden weights become a v1.6 checkpoint: `image_newline` added, tower inside.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model
from visiondrop.methods.visionzip import VisionZip

GOLDEN = Path(__file__).parents[1] / "golden"
FIGURES = json.loads((GOLDEN / "BASELINE_next.json").read_text())
PICTURES = FIGURES["settings"][0]["pictures"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("next")
    said = FIGURES["input"]
    for name in said["weights"]:
        shutil.copytree(GOLDEN / name, root / name)
    folder = root / "tiny-llava-v1.5"
    config = json.loads((folder / "config.json").read_text())
    names = ("image_grid_pinpoints", "mm_patch_merge_type", "image_aspect_ratio")
    (folder / "config.json").write_text(json.dumps(config | {name: said[name] for name in names}))
    state = load_file(folder / "model.safetensors")
    state["model.image_newline"] = torch.tensor(said["image_newline"])
    tower = root / "tiny-clip-vit-336" / "model.safetensors"
    for key, value in load_file(tower).items():
        state["model.vision_tower.vision_tower." + key] = value
    tower.unlink()
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model.safetensors")
    return load_pretrained_model(
        str(folder), None, "tiny-llava-v1.6", device="cpu", torch_dtype=torch.float32
    )[1]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: f"{p['original_size_width_height']}")
def test_golden_BASELINE_next(model, picture):
    images = load_file(GOLDEN / "images.safetensors")
    tiles = [images[f"image_{index}"] for index in picture["tile_images"]]
    ids = torch.tensor([FIGURES["input"]["input_ids"]])
    size = tuple(picture["original_size_width_height"])
    expected = torch.tensor(picture["first_step_logits"])
    whole = picture is PICTURES[0]
    out = model.generate(
        ids,
        images=[torch.stack(tiles)],
        image_sizes=[size],
        do_sample=False,
        max_new_tokens=8 if whole else 1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    torch.testing.assert_close(out.logits[0][0], expected, atol=1e-4, rtol=0)
    new = picture["generated_ids"]  # without BOS in this file
    assert out.sequences[0].tolist() == (new if whole else new[:1])
    length = picture["sequence_length"] + (7 if whole else 0)
    assert out.past_key_values.layers[0].get_seq_length() == length


def test_golden_VisionZip_next_on_the_original_checkpoint(model):
    """A method on the loaded checkpoint, three tiles."""
    figures = json.loads((GOLDEN / "VisionZip_next.json").read_text())
    assert figures["input"]["image_newline"] == FIGURES["input"]["image_newline"]
    setting = figures["settings"][0]
    hyper = setting["hyperparameters"]
    picture = min(setting["pictures"], key=lambda p: len(p["tiles"]))
    images = load_file(GOLDEN / "images.safetensors")
    tiles = torch.stack([images[f"image_{tile['image']}"] for tile in picture["tiles"]])
    method = VisionZip(hyper["dominant"], hyper["contextual"])
    with method.on_tiles(**VisionZip.released_tiles)(model) as trace:
        out = model.generate(
            torch.tensor([figures["input"]["input_ids"]]),
            images=[tiles],
            image_sizes=[tuple(picture["original_size_width_height"])],
            do_sample=False,
            max_new_tokens=8,
            return_dict_in_generate=True,
            output_logits=True,
        )
    expected = torch.tensor(picture["first_step_logits"])
    torch.testing.assert_close(out.logits[0][0], expected, atol=1e-4, rtol=0)
    assert out.sequences[0].tolist() == picture["generated_ids"]
    assert trace.mean_tokens == picture["n_visual_tokens_to_llm"]
