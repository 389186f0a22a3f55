"""The loader and `generate` against what the original LLaVA code computes (golden figures)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.model.builder import load_pretrained_model

GOLDEN = Path(__file__).parents[1] / "golden"
FIGURES = json.loads((GOLDEN / "VisionDrop.json").read_text())
PROMPTS = {case["name"].rsplit("/", 1)[0]: case for case in FIGURES["cases"]}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    torch.set_num_threads(1)
    folder = str(GOLDEN / "tiny-llava-v1.5")
    return load_pretrained_model(
        folder,
        None,
        "tiny-llava-v1.5",
        device="cpu",
        torch_dtype=torch.float32,
        attn_implementation=request.param,
    )[1]


@pytest.fixture(scope="module")
def images():
    return load_file(GOLDEN / "images.safetensors")


@pytest.mark.parametrize("name", FIGURES["unpruned"])
def test_golden_VisionDrop_unpruned(model, images, name):
    case, figures = PROMPTS[name], FIGURES["unpruned"][name]
    new = figures["generated"][1:]  # the old generate() put BOS first
    out = model.generate(
        torch.tensor([case["prompt_ids"]]),
        images=images[case["image"]][None],
        do_sample=False,
        max_new_tokens=len(new),
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert out.sequences.tolist() == [new]
    torch.testing.assert_close(
        out.logits[0][0], torch.tensor(figures["first_step_logits"]), atol=1e-4, rtol=0
    )


def test_golden_VisionDrop_unpruned_as_one_batch(model, images):
    """Unequal prompts, as a list of rows, and padded by hand on either side."""
    names = list(FIGURES["unpruned"])
    rows = [torch.tensor(PROMPTS[name]["prompt_ids"]) for name in names]
    rows[0] = torch.cat([rows[0], rows[0].new_tensor([7, 9])])  # unequal in length
    pictures = [images[PROMPTS[name]["image"]] for name in names]
    options = dict(
        do_sample=False, max_new_tokens=4, return_dict_in_generate=True, output_logits=True
    )
    batch = model.generate(rows, images=pictures, **options)
    longest = max(map(len, rows))
    for left in (True, False):
        ids = torch.full((len(rows), longest), 0)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), None) if left else slice(len(row))
            ids[i, place], mask[i, place] = row, 1
        padded = model.generate(ids, images=pictures, attention_mask=mask, **options)
        assert torch.equal(padded.sequences, batch.sequences)
        assert torch.equal(padded.logits[0], batch.logits[0])
    for i, name in enumerate(names):
        single = model.generate(rows[i][None], images=pictures[i], **options)
        torch.testing.assert_close(batch.logits[0][i], single.logits[0][0], atol=1e-4, rtol=0)
        if i:  # row 0 has been made longer
            expected = torch.tensor(FIGURES["unpruned"][name]["first_step_logits"])
            torch.testing.assert_close(batch.logits[0][i], expected, atol=1e-4, rtol=0)
