"""The bundled CLIP: the pocket model's own tower, and a text side that has learned something."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, LlavaForConditionalGeneration

from llava.train.pocket_clip import CHUNK, END, HELD_OUT_SEED, clip_tokenizer, features, retrieval
from visiondrop.text_encoder import TextEncoder

ROOT = Path(__file__).resolve().parents[2]
LLAVA, CLIP = ROOT / "checkpoints" / "pocket-llava", ROOT / "checkpoints" / "pocket-clip"


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(CLIP, dtype=torch.float32).eval()


def test_its_vision_tower_is_the_pocket_models_own(clip):
    llava = LlavaForConditionalGeneration.from_pretrained(LLAVA, dtype=torch.float32)
    own = llava.model.vision_tower.state_dict()
    last = f"layers.{llava.config.vision_config.num_hidden_layers - 1}."
    trained = (last, "post_layernorm")
    for name, tensor in clip.vision_model.state_dict().items():
        if not any(part in name for part in trained):
            assert torch.equal(tensor, own[name]), name


def test_questions_end_where_stock_clip_pools(clip):
    # The pocket model's vocabulary has grown since: known words keep their ids, the end has a
    # higher one, and some words (" says") are now one token.
    made, shipped = clip_tokenizer(LLAVA), TextEncoder(str(CLIP)).tokenizer
    end, later = (t.convert_tokens_to_ids(END) for t in (shipped, made))
    known = ["What color is the star?", "a red circle, an orange sign BAKE"]
    fresh = [[end if i == later else i for i in ids] for ids in made(known)["input_ids"]]
    assert shipped(known)["input_ids"] == fresh
    assert later == max(made.get_vocab().values())
    texts = ["What color is the star?", "a red circle, an orange sign that says BAKE"]
    coded = shipped(texts, padding=True, return_tensors="pt")
    assert end == clip.config.text_config.eos_token_id == max(shipped.get_vocab().values())
    with torch.no_grad():
        stock = clip.get_text_features(**coded).pooler_output
    ours = torch.cat(TextEncoder(str(CLIP)).questions(texts))
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)
    assert torch.cosine_similarity(stock[0], stock[1], dim=0) < 0.9


def test_pictures_find_their_captions(clip, tmp_path):
    """Far beyond chance (3 %) on scenes that it was not trained on."""
    held = features(clip, 64, HELD_OUT_SEED, tmp_path, "test")
    assert held.shape == (64, 577, 160) and len(list(tmp_path.iterdir())) == 1 <= CHUNK
    assert retrieval(clip, TextEncoder(str(CLIP)).tokenizer, held)["of_32"] > 0.4
