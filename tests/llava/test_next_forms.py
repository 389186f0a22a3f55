"""LLaVA-NeXT checkpoints in every published shape: the original layout and Hugging Face's give the
stock class's own logits and ids on the same weights, unpruned and pruned.
"""

import json

import pytest
import torch
import transformers

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import get_template, infer_template
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_config, load_pretrained_model
from tests.llava import forms
from visiondrop import VisionDrop

OPTIONS = dict(do_sample=False, max_new_tokens=5, return_dict_in_generate=True, output_logits=True)
QUESTION = "<image>\nWhat is in the picture?"
METHOD = VisionDrop(encoder=(30, 5), llm={1: (12, 3)})
SIZES = ((100, 90, 5), (300, 40, 4))  # width, height, tiles

LLAMA, MISTRAL = transformers.LlamaConfig, transformers.MistralConfig
YI = dict(vocab_size=64000, eos_token_id=7, rope_theta=5000000.0)
MISTRAL_7B = dict(rope_theta=1000000.0, sliding_window=None)
# name as published -> language model, its settings, template, prompt
SHAPES = {
    "llava-v1.6-vicuna-7b": (
        LLAMA, dict(num_key_value_heads=4), {}, "vicuna_v1",
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: "
        f"{QUESTION} ASSISTANT:",
    ),
    "llava-v1.6-mistral-7b": (
        MISTRAL, MISTRAL_7B,
        dict(architectures=["LlavaMistralForCausalLM"], model_type="llava_mistral"),
        "mistral_instruct", f"[INST] {QUESTION} [/INST]",
    ),
    "llava-v1.6-34b": (
        LLAMA, YI, {}, "chatml_direct",
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n"
        f"{QUESTION}<|im_end|><|im_start|>assistant\n",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers():
    torch.set_num_threads(1)
    return {
        name: forms.sentencepiece_model(**(forms.YI_MARKS if "34b" in name else {}))
        for name in SHAPES
    }


@pytest.fixture(scope="module", params=SHAPES)
def shape(request, tmp_path_factory, tokenizers):
    """A published shape: its name, the stock model, the folder in the original layout, loaded."""
    name = request.param
    kind, text, said, _, _ = SHAPES[name]
    stock = forms.stock_model("next", kind(**(forms.TEXT | text)))
    folder = tmp_path_factory.mktemp("checkpoints") / name
    # Older configurations hold the pinpoints as text.
    points = str([tuple(pair) for pair in forms.PINPOINTS]) if "mistral" in name else None
    said = said | ({} if points is None else dict(image_grid_pinpoints=points))
    forms.write_v16(folder, stock, tokenizers[name], **text, **said)
    if "34b" in name:
        forms.write_tokenizer(folder, tokenizers[name], **forms.yi_tokenizer(forms.YI_NAMED))
    return name, stock, folder, load(folder)


def load(folder):
    return load_pretrained_model(
        str(folder), None, folder.name, device="cpu", torch_dtype=torch.float32
    )


def prompt_ids(name, tokenizer):
    template = SHAPES[name][3]
    assert infer_template(name) == {"vicuna_v1": "llava_v1"}.get(template, template)
    conversation = get_template(template)
    conversation.append_message(conversation.roles[0], QUESTION)
    conversation.append_message(conversation.roles[1], None)
    assert conversation.get_prompt() == SHAPES[name][4]
    return tokenizer_image_token(conversation.get_prompt(), tokenizer)


def pictures(seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, forms.SIDE, forms.SIDE, generator=generator) for *_, n in SIZES]


def stock_answer(stock, ids, stack, size, method=None):
    """The stock class, called in its own way, with the placeholders written out here."""
    sizes = torch.tensor([[size[1], size[0]]])
    count = len(stock.model.get_image_features(stack[None], image_sizes=sizes).pooler_output[0])
    prompt = []
    for token in ids:
        prompt += [forms.STOCK_IMAGE_TOKEN] * count if token == IMAGE_TOKEN_INDEX else [token]
    prompt = torch.tensor([prompt])
    call = dict(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values=stack[None],
        image_sizes=sizes, suppress_tokens=[forms.STOCK_IMAGE_TOKEN], **OPTIONS,
    )  # fmt: skip
    if method is None:
        out = stock.generate(**call)
    else:
        with method(stock) as trace:
            out = stock.generate(**call)
        return out.sequences[:, prompt.shape[1] :], out.logits, trace
    return out.sequences[:, prompt.shape[1] :], out.logits, None


def check(shape, loaded):
    """Unpruned and pruned, both forms of a call, picture by picture."""
    name, stock = shape[:2]
    tokenizer, model, _, _ = loaded
    assert isinstance(model, transformers.LlavaNextForConditionalGeneration)
    ids = prompt_ids(name, tokenizer)
    call = dict(suppress_tokens=[forms.STOCK_IMAGE_TOKEN], **OPTIONS)
    for (width, height, _), stack in zip(SIZES, pictures(), strict=True):
        whole = None
        for method in (None, METHOD):
            expected, logits, trace = stock_answer(stock, ids, stack, (width, height), method)
            given = dict(images=[stack], image_sizes=[(width, height)], **call)
            if method is None:
                out = model.generate(torch.tensor([ids]), **given)
            else:
                with method(model) as ours:
                    out = model.generate(torch.tensor([ids]), **given)
                assert ours.to_dict() == trace.to_dict()
                assert ours.samples[0].tokens_per_layer[1] > 15  # newlines beside 12 + 3
                assert (logits[0] - whole).abs().max() > 0.1  # something was dropped
            assert torch.equal(out.sequences, expected)
            for mine, theirs in zip(out.logits, logits, strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
            whole = logits[0]
            assert whole.std() > 0.1


def test_original_layout(shape):
    name, stock, _, loaded = shape
    check(shape, loaded)
    config, text = loaded[1].config, stock.config.text_config
    assert (
        config.image_token_id == text.vocab_size == loaded[1].get_input_embeddings().weight.size(0)
    )
    assert config.image_aspect_ratio == "anyres"
    assert config.image_grid_pinpoints == [[height, width] for width, height in forms.PINPOINTS]
    assert config.text_config.num_key_value_heads == text.num_key_value_heads
    assert config.text_config.rope_parameters == text.rope_parameters
    assert getattr(config.text_config, "sliding_window", None) is None
    said, real = (c.text_config.to_dict() for c in (load_config(str(shape[2])), config))
    assert said | {"dtype": None} == real | {"dtype": None}


def test_stock_layout(shape, tmp_path):
    name, stock, _, original = shape
    folder = tmp_path / name
    stock.save_pretrained(folder)
    original[0].save_pretrained(folder)
    loaded = load(folder)
    check(shape, loaded)
    assert prompt_ids(name, loaded[0]) == prompt_ids(name, original[0])
    assert loaded[1].config.image_aspect_ratio == "anyres"


def test_generation_ends_where_a_turn_ends(shape):
    """`</s>`, or chatml's `<|im_end|>`."""
    name, _, _, (tokenizer, model, _, _) = shape
    ends = model.generation_config.eos_token_id
    assert ends == tokenizer.eos_token_id == (7 if "34b" in name else 2)
    ids, stack = prompt_ids(name, tokenizer), pictures()[0]
    with torch.no_grad():
        head = model.lm_head.weight.clone()
        model.lm_head.weight.zero_()  # all logits alike but for a bias towards the end
        call = dict(images=[stack], image_sizes=[SIZES[0][:2]], do_sample=False, max_new_tokens=5)
        out = model.generate(torch.tensor([ids]), sequence_bias={(ends,): 5.0}, **call)
        model.lm_head.weight.copy_(head)
    assert out.tolist() == [[ends]]
    assert tokenizer.batch_decode(out, skip_special_tokens=True) == [""]


def test_an_end_that_only_the_tokenizer_names(tmp_path, tokenizers):
    """A base model's generation settings keep their own end beside the turn's."""
    name = "llava-v1.6-34b"
    stock = forms.stock_model("next", LLAMA(**(forms.TEXT | YI)))
    folder = forms.write_v16(tmp_path / name, stock, tokenizers[name], **YI)
    forms.write_tokenizer(folder, tokenizers[name], **forms.yi_tokenizer(forms.YI_NAMED))
    settings = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, temperature=0.6)
    forms.write_json(folder / "generation_config.json", settings)
    assert load(folder)[1].generation_config.eos_token_id == [2, 7]


def test_real_pictures_are_cut_as_the_pinpoints_say(shape):
    from PIL import Image

    _, model, processor, _ = shape[3]
    picture = Image.effect_noise((300, 40), 80).convert("RGB")
    tiles = process_images([picture], processor, model.config)[0]
    assert tiles.shape == (4, 3, forms.SIDE, forms.SIDE)


# ------------------------------------------------------------------ other ways to merge tiles


@pytest.mark.parametrize("merge", ["spatial", "flat"])
def test_tiles_without_unpadding(tmp_path, tokenizers, merge):
    """Transformers has no such class: the picture is put together here, tile by tile."""
    name = "llava-v1.6-vicuna-7b"
    stock = forms.stock_model("next")
    folder = forms.write_v16(tmp_path / name, stock, tokenizers[name], mm_patch_merge_type=merge)
    tokenizer, model, _, _ = load(folder)
    ids = prompt_ids(name, tokenizer)
    at = ids.index(IMAGE_TOKEN_INDEX)
    side = forms.SIDE // forms.PATCH
    grids = {(100, 90): (2, 2), (300, 40): (1, 3)}
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")[1]
    for (width, height, count), stack in zip(SIZES, pictures(), strict=True):
        rows, columns = grids[width, height]
        with torch.no_grad():
            states = stock.model.vision_tower(stack, output_hidden_states=True).hidden_states[-2]
            tiles = stock.model.multi_modal_projector(states[:, 1:])
            order = [(0, patch) for patch in range(side * side)]
            if merge == "flat":
                order += [(t, patch) for t in range(1, count) for patch in range(side * side)]
            else:
                order += [
                    (1 + row // side * columns + column // side, row % side * side + column % side)
                    for row in range(rows * side)
                    for column in range(columns * side)
                ]
            words = stock.get_input_embeddings()
            text = words(torch.tensor([ids[:at] + ids[at + 1 :]]))[0]
            picture = torch.stack([tiles[where] for where in order])
            embeds = torch.cat([text[:at], picture, text[at:]])[None]
            expected = stock.lm_head(stock.model.language_model(inputs_embeds=embeds)[0])[0, -1]
        call = dict(images=[stack], image_sizes=[(width, height)], **OPTIONS)
        for loaded in (model, again):
            out = loaded.generate(torch.tensor([ids]), **call)
            torch.testing.assert_close(out.logits[0][0], expected, atol=1e-4, rtol=0)

        # Pruned: a method that keeps all is the unpruned model, one that drops meets its budget.
        whole = VisionDrop(llm={1: (len(order), 0)})
        with whole(model) as trace:
            kept = model.generate(torch.tensor([ids]), **call)
        torch.testing.assert_close(kept.logits[0][0], expected, atol=1e-4, rtol=0)
        assert set(trace.samples[0].tokens_per_layer) == {len(order)}
        with METHOD(model) as trace:
            model.generate(torch.tensor([ids]), **call)
        sample = trace.samples[0]
        assert sample.tokens_per_layer == [35, 15] and sample.newlines_per_layer == [0, 0]
        record = sample.stages[0]
        plain = record.identity[record.source[~record.contextual]]
        plain = plain[plain >= 0]
        assert plain.tolist() == [t * side**2 + p for t, p in order
                                  if t * side**2 + p in set(plain.tolist())]  # fmt: skip


def test_a_merge_that_is_none(tmp_path, tokenizers):
    name = "llava-v1.6-vicuna-7b"
    stock = forms.stock_model("next")
    folder = forms.write_v16(tmp_path / name, stock, tokenizers[name])
    config = json.loads((folder / "config.json").read_text())
    for changes, said in (
        (dict(mm_patch_merge_type="unpad"), "mm_patch_merge_type is 'unpad'.*spatial_unpad"),
        (dict(image_grid_pinpoints="56, 112"), "image_grid_pinpoints is '56, 112'"),
        (dict(image_grid_pinpoints=None), "image_grid_pinpoints is None"),
    ):
        forms.write_json(folder / "config.json", config | changes)
        with pytest.raises(ValueError, match=said):
            load(folder)
