"""Every form of a checkpoint gives the stock class's own logits and ids on the same weights."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_config, load_pretrained_model
from tests.llava import forms

PROMPT = "USER: <image>\nWhat is in the picture? ASSISTANT:"
OPTIONS = dict(do_sample=False, max_new_tokens=5, return_dict_in_generate=True, output_logits=True)


@pytest.fixture(scope="module")
def tokenizer_bytes():
    torch.set_num_threads(1)
    return forms.sentencepiece_model()


@pytest.fixture(scope="module")
def stock():
    torch.set_num_threads(1)
    return forms.stock_model()


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, forms.SIDE, forms.SIDE, generator=generator)


def load(folder, base=None, **options):
    settings = dict(device="cpu", torch_dtype=torch.float32)
    return load_pretrained_model(str(folder), base and str(base), "any", **(settings | options))


def stock_answer(stock, ids, pixels, count=forms.PATCHES, **more):
    """A stock call on ids whose placeholders are written out here."""
    expanded = []
    for token in ids:
        expanded += [forms.STOCK_IMAGE_TOKEN] * count if token == IMAGE_TOKEN_INDEX else [token]
    prompt = torch.tensor([expanded])
    out = stock.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values=pixels,
        **more, **OPTIONS,
    )  # fmt: skip
    return out.sequences[:, prompt.shape[1] :], out.logits


def assert_same_answer(loaded, stock, pictures):
    tokenizer, model, _, context_len = loaded
    assert isinstance(model, transformers.LlavaForConditionalGeneration)
    assert context_len == 2048
    ids = tokenizer_image_token(PROMPT, tokenizer)
    assert ids[0] == 1 and ids.count(IMAGE_TOKEN_INDEX) == 1
    expected, logits = stock_answer(stock, ids, pictures[:1])
    out = model.generate(torch.tensor([ids]), images=pictures[:1], **OPTIONS)
    assert torch.equal(out.sequences, expected)
    for ours, theirs in zip(out.logits, logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert logits[0].std() > 0.1  # the comparison is of something
    return ids


def test_v15_bin_shards_with_a_full_clip_apart(tmp_path, stock, tokenizer_bytes, pictures):
    folder = forms.write_v15(tmp_path / "m", stock, tokenizer_bytes)
    loaded = load(folder)
    assert_same_answer(loaded, stock, pictures)
    assert loaded[1].config.image_token_id == forms.VOCABULARY
    assert loaded[1].get_input_embeddings().weight.shape[0] == forms.VOCABULARY
    config = load_config(str(folder))
    for part in ("text_config", "vision_config"):
        said, real = getattr(config, part).to_dict(), getattr(loaded[1].config, part).to_dict()
        assert {k: v for k, v in said.items() if k != "dtype"} == {
            k: v for k, v in real.items() if k != "dtype"
        }
    assert config.image_aspect_ratio == loaded[1].config.image_aspect_ratio == "pad"


def test_v15_safetensors_with_a_vision_only_tower(tmp_path, stock, tokenizer_bytes, pictures):
    folder = forms.write_v15(tmp_path / "m", stock, tokenizer_bytes, model_type="llava_llama")
    for file in folder.glob("pytorch_model*"):
        file.unlink()
    state = forms.language_state(stock) | forms.projector_state(stock)
    save_file(state, folder / "model.safetensors")
    for file in (tmp_path / "tower").iterdir():
        file.unlink()
    forms.write_tower(tmp_path / "tower", stock, full=False)
    assert_same_answer(load(folder), stock, pictures)


def test_v15_recognised_by_its_tower_and_an_absolute_path(
    tmp_path, stock, tokenizer_bytes, pictures
):
    folder = forms.write_v15(tmp_path / "m", stock, tokenizer_bytes)
    (tmp_path / "tower").rename(tmp_path / "elsewhere")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    config["mm_vision_tower"] = str(tmp_path / "elsewhere")
    forms.write_json(folder / "config.json", config)
    assert_same_answer(load(folder), stock, pictures)


def test_v15_in_half_precision_takes_the_files_as_they_are(tmp_path, stock, tokenizer_bytes):
    half = copy.deepcopy(stock).to(torch.bfloat16)
    folder = forms.write_v15(tmp_path / "m", half, tokenizer_bytes)
    model = load(folder, torch_dtype=torch.bfloat16)[1]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    expected = half.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert load(folder, torch_dtype=None)[1].dtype == torch.float32  # a CPU's default


def test_v16_tower_inside(tmp_path, tokenizer_bytes):
    stock = forms.stock_model("next")
    folder = forms.write_v16(tmp_path / "m", stock, tokenizer_bytes)
    tokenizer, model, _, _ = load(folder)
    assert isinstance(model, transformers.LlavaNextForConditionalGeneration)
    assert model.config.image_aspect_ratio == "anyres"
    ids = tokenizer_image_token(PROMPT, tokenizer)
    generator = torch.Generator().manual_seed(2)
    # (width, height) and the tiles that the pinpoints ask for, the whole picture included
    for size, tiles in (((100, 90), 5), ((50, 55), 3), ((55, 50), 3), ((300, 40), 4)):
        stack = torch.randn(tiles, 3, forms.SIDE, forms.SIDE, generator=generator)
        more = {"image_sizes": torch.tensor([[size[1], size[0]]])}
        features = stock.model.get_image_features(stack[None], **more).pooler_output[0]
        expected, logits = stock_answer(stock, ids, stack[None], len(features), **more)
        out = model.generate(torch.tensor([ids]), images=[stack], image_sizes=[size], **OPTIONS)
        assert torch.equal(out.sequences, expected)
        torch.testing.assert_close(out.logits[0], logits[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="image_sizes"):
        model.generate(torch.tensor([ids]), images=[stack])
    with pytest.raises(ValueError, match="needs 5 tiles"):
        model.generate(torch.tensor([ids]), images=[stack], image_sizes=[(100, 90)])


def test_stock_layout(tmp_path, stock, tokenizer_bytes, pictures):
    original = load(forms.write_v15(tmp_path / "m", stock, tokenizer_bytes))
    stock.save_pretrained(tmp_path / "stock")
    original[0].save_pretrained(tmp_path / "stock")
    loaded = load(tmp_path / "stock")
    ids = assert_same_answer(loaded, stock, pictures)
    assert ids == tokenizer_image_token(PROMPT, original[0])
    assert loaded[1].config.image_token_id == forms.STOCK_IMAGE_TOKEN
    assert loaded[1].config.image_aspect_ratio == "pad"
    for text in (" ASSISTANT: a", "a  b\n", "x</s>USER: y"):
        assert loaded[0](text).input_ids == original[0](text).input_ids


def test_saved_model_loads_as_the_stock_class(tmp_path, stock, tokenizer_bytes):
    model = load(forms.write_v15(tmp_path / "m", stock, tokenizer_bytes))[1]
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    again, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(again) is transformers.LlavaForConditionalGeneration
    expected = stock.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in again.state_dict().items())
    forms.write_tokenizer(tmp_path / "saved", tokenizer_bytes, tokenizer_class="LlamaTokenizer")
    assert load(tmp_path / "saved")[1].config.image_token_id == forms.VOCABULARY


def test_projector_on_a_bare_language_model(tmp_path, stock, tokenizer_bytes, pictures):
    base = forms.write_vicuna(tmp_path / "vicuna", stock, tokenizer_bytes)
    forms.write_tower(tmp_path / "tower", stock)
    folder = tmp_path / "pretrain"
    forms.write_json(folder / "config.json", forms.ORIGINAL)
    torch.save(forms.projector_state(stock), folder / "mm_projector.bin")
    assert_same_answer(load(folder, base), stock, pictures)
    with pytest.raises(ValueError, match="model_base"):
        load(folder)


def test_lora_on_a_bare_language_model(tmp_path, stock, tokenizer_bytes, pictures):
    peft = pytest.importorskip("peft")
    base = forms.write_vicuna(tmp_path / "vicuna", stock, tokenizer_bytes)
    forms.write_tower(tmp_path / "tower", stock)
    folder = tmp_path / "llava-lora"
    language = transformers.LlamaForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(
        language,
        peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"
        ),  # fmt: skip
    )
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    forms.write_json(folder / "config.json", forms.ORIGINAL)
    extras = {f"base_model.model.{k}": v for k, v in forms.projector_state(stock).items()}
    torch.save(extras, folder / "non_lora_trainables.bin")

    # The reference: W + B A alpha / r, written out.
    merged = copy.deepcopy(stock)
    target = merged.state_dict()
    weights = dict(adapted.named_parameters())
    changed = 0
    for name, value in weights.items():
        if ".lora_A." not in name:
            continue
        key = name.removeprefix("base_model.model.model.").replace(".lora_A.default", "")
        delta = weights[name.replace("lora_A", "lora_B")] @ value * 2.0
        target[f"model.language_model.{key}"].add_(delta.detach())
        changed += 1
    assert changed == 2 * forms.TEXT["num_hidden_layers"]
    loaded = load(folder, base)
    ids = assert_same_answer(loaded, merged, pictures)
    plain = stock_answer(stock, ids, pictures[:1])[1][0]
    assert (plain - stock_answer(merged, ids, pictures[:1])[1][0]).abs().max() > 0.1
    with pytest.raises(ValueError, match="model_base"):
        load(folder)


def test_mistral_language_model(tmp_path, tokenizer_bytes, pictures):
    text = transformers.MistralConfig(**forms.TEXT, sliding_window=None)
    vision = transformers.CLIPVisionConfig(**forms.VISION)
    stock = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=forms.STOCK_IMAGE_TOKEN
        )
    ).eval()
    forms.randomise(stock, seed=4)
    folder = forms.write_v15(
        tmp_path / "m", stock, tokenizer_bytes,
        architectures=["LlavaMistralForCausalLM"], model_type="llava_mistral", sliding_window=None,
    )  # fmt: skip
    loaded = load(folder)
    assert loaded[1].config.text_config.model_type == "mistral"
    assert_same_answer(loaded, stock, pictures)


def test_siglip_tower_in_stock_layout(tmp_path, tokenizer_bytes, pictures):
    """No CLS, all patches taken."""
    settings = {key: value for key, value in forms.VISION.items() if key != "projection_dim"}
    stock = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.SiglipVisionConfig(**settings, vision_use_head=False),
            text_config=transformers.LlamaConfig(**forms.TEXT),
            image_token_index=forms.STOCK_IMAGE_TOKEN,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
    ).eval()
    forms.randomise(stock, seed=5)
    stock.save_pretrained(tmp_path / "m")
    forms.write_tokenizer(
        tmp_path / "m", tokenizer_bytes, tokenizer_class="LlamaTokenizer", add_bos_token=True
    )
    assert_same_answer(load(tmp_path / "m"), stock, pictures)


def test_start_and_end_tokens_are_added(tmp_path, stock, tokenizer_bytes):
    """Tokens that the checkpoint's configuration asks for and its table has no rows for."""
    folder = forms.write_v15(tmp_path / "m", stock, tokenizer_bytes, mm_use_im_start_end=True)
    tokenizer, model, _, _ = load(folder)
    assert len(tokenizer) == forms.VOCABULARY + 2
    assert model.get_input_embeddings().weight.shape[0] == forms.VOCABULARY + 2
    assert model.config.image_token_id == forms.VOCABULARY + 2
    ids = tokenizer_image_token("<im_start><image><im_end>\nWhat", tokenizer)
    place = ids.index(IMAGE_TOKEN_INDEX)
    assert [ids[place - 1], ids[place + 1]] == [forms.VOCABULARY, forms.VOCABULARY + 1]
    picture = torch.zeros(1, 3, forms.SIDE, forms.SIDE)
    assert model.generate(torch.tensor([ids]), images=picture, max_new_tokens=2).shape[1] <= 2


def test_two_picture_features_of_a_cls_patch_checkpoint(tmp_path, stock, tokenizer_bytes):
    folder = forms.write_v15(
        tmp_path / "m", stock, tokenizer_bytes, mm_vision_select_feature="cls_patch"
    )
    tokenizer, model, _, _ = load(folder)
    ids = torch.tensor([tokenizer_image_token(PROMPT, tokenizer)])
    picture = torch.zeros(1, 3, forms.SIDE, forms.SIDE)
    expanded, _ = model.expand(ids, picture)
    assert expanded.input_ids.shape[1] == ids.shape[1] + forms.PATCHES
    model.generate(ids, images=picture, max_new_tokens=1)
