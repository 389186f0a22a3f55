"""Tiny LLaVA checkpoints with random weights, written in every published form.

The names and files below are the published formats' own, written out by hand, so that a test does
not read with the table that it writes with.
"""

import io
import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

SIDE, PATCH = 56, 14
PATCHES = (SIDE // PATCH) ** 2
VOCABULARY = 400
VISION = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
    image_size=SIDE, patch_size=PATCH, projection_dim=16,
)  # fmt: skip
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=512, rms_norm_eps=1e-5,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, rope_theta=10000.0,
)  # fmt: skip
ORIGINAL = dict(
    TEXT,
    architectures=["LlavaLlamaForCausalLM"],
    model_type="llava",  # as published: it says nothing
    hidden_act="silu",
    tie_word_embeddings=False,
    rope_scaling=None,
    mm_hidden_size=24,
    mm_projector_type="mlp2x_gelu",
    mm_use_im_patch_token=False,
    mm_use_im_start_end=False,
    mm_vision_select_feature="patch",
    mm_vision_select_layer=-2,
    mm_vision_tower="tower",
    image_aspect_ratio="pad",
    torch_dtype="float16",
    transformers_version="4.31.0",
)
# (width, height), not symmetric, so that a transposed reading shows.
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56]]
# A byte token that no prompt of the tests holds stands for the picture in the stock reference.
STOCK_IMAGE_TOKEN = 20

SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is in the picture? ASSISTANT: a red circle and a  blue   square",
    "Reference OCR token: STOP, 42, EXIT\nAnswer the question using a single word or phrase.",
]


def sentencepiece_model(**more) -> bytes:
    """A model with Llama's settings: BPE, bytes for what it does not know, no normalisation."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=out, vocab_size=VOCABULARY,
        model_type="bpe", byte_fallback=True, character_coverage=1.0, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        num_threads=1, minloglevel=2, **more,
    )  # fmt: skip
    return out.getvalue()


# Yi's SentencePiece model has other names for BOS and EOS, and marks of its own: 3 to 5 stand for
# control symbols, 6 to 8 for user-defined ones. As published, no BOS is put in front, and the
# turn's end is EOS.
YI_MARKS = dict(
    bos_piece="<|startoftext|>",
    eos_piece="<|endoftext|>",
    control_symbols=["<|Human|>", "<|Assistant|>", "<|System|>"],
    user_defined_symbols=["<|im_start|>", "<|im_end|>", "<|im_sep|>"],
)
YI_NAMED = {0: "<unk>", 1: "<|startoftext|>", 2: "<|endoftext|>", 7: "<|im_end|>"}


def yi_tokenizer(named: dict[int, str]) -> dict:
    """Its `tokenizer_config.json`, which names some of the marks."""
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    return dict(
        added_tokens_decoder={str(i): dict(content=text, **flags) for i, text in named.items()},
        add_bos_token=False, add_eos_token=False, bos_token="<|startoftext|>",
        eos_token="<|im_end|>", pad_token="<unk>", unk_token="<unk>", legacy=True,
        model_max_length=4096, padding_side="right", tokenizer_class="LlamaTokenizer",
    )  # fmt: skip


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that logits differ and every part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))


def stock_model(kind: str = "llava", text=None) -> LlavaForConditionalGeneration:
    """The reference: a stock class whose placeholder is inside the vocabulary."""
    settings = dict(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT) if text is None else text,
        image_token_index=STOCK_IMAGE_TOKEN,
        image_seq_length=PATCHES,
    )
    if kind == "next":
        grid = [[height, width] for width, height in PINPOINTS]
        model = LlavaNextForConditionalGeneration(
            LlavaNextConfig(**settings, image_grid_pinpoints=grid)
        )
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**settings))
    randomise(model, seed=0)
    return model.eval()


def language_state(stock: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Language model under Llama's own names."""
    state = {}
    for key, value in stock.state_dict().items():
        if key.startswith("model.language_model."):
            state["model." + key.removeprefix("model.language_model.")] = value.clone()
    state["lm_head.weight"] = stock.lm_head.weight.detach().clone()
    return state


def projector_state(stock: torch.nn.Module) -> dict[str, torch.Tensor]:
    projector = stock.model.multi_modal_projector
    return {
        "model.mm_projector.0.weight": projector.linear_1.weight.detach().clone(),
        "model.mm_projector.0.bias": projector.linear_1.bias.detach().clone(),
        "model.mm_projector.2.weight": projector.linear_2.weight.detach().clone(),
        "model.mm_projector.2.bias": projector.linear_2.bias.detach().clone(),
    }


def vision_state(stock: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Vision tower under CLIP's names as published (`vision_model.`)."""
    return {
        "vision_model." + key: value.clone()
        for key, value in stock.model.vision_tower.state_dict().items()
        if not key.endswith("position_ids")
    }


def write_json(path: Path, data: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def write_tokenizer(folder: Path, model: bytes, **settings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    if settings:
        write_json(folder / "tokenizer_config.json", settings)


def write_tower(folder: Path, stock: torch.nn.Module, full: bool = True) -> None:
    """CLIPModel with its text half as a `.bin`, or CLIPVisionModel as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    state = vision_state(stock)
    write_json(
        folder / "preprocessor_config.json",
        dict(crop_size=SIDE, do_center_crop=True, do_normalize=True, do_resize=True, size=SIDE,
             feature_extractor_type="CLIPFeatureExtractor", resample=3,
             image_mean=[0.48145466, 0.4578275, 0.40821073],
             image_std=[0.26862954, 0.26130258, 0.27577711]),
    )  # fmt: skip
    if not full:
        config = dict(VISION, model_type="clip_vision_model", architectures=["CLIPVisionModel"])
        write_json(folder / "config.json", config)
        save_file(state, folder / "model.safetensors")
        return
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                vocab_size=50, max_position_embeddings=8, projection_dim=16)  # fmt: skip
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    for key, value in clip.state_dict().items():
        if not key.startswith("vision_model."):
            state[key] = value.clone()
    state["vision_model.embeddings.position_ids"] = torch.arange(PATCHES + 1)[None]
    state["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    write_json(
        folder / "config.json",
        dict(model_type="clip", architectures=["CLIPModel"], text_config=text, projection_dim=16,
             vision_config=VISION),
    )  # fmt: skip
    torch.save(state, folder / "pytorch_model.bin")


def write_shards(folder: Path, state: dict[str, torch.Tensor], ending: str) -> None:
    """Two shards and their index."""
    stem = "pytorch_model" if ending == "bin" else "model"
    keys = sorted(state)
    parts = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    names = {}
    for i, part in enumerate(parts, start=1):
        name = f"{stem}-{i:05}-of-00002.{ending}"
        shard = {key: state[key].contiguous() for key in part}
        if ending == "bin":
            torch.save(shard, folder / name)
        else:
            save_file(shard, folder / name)
        names.update(dict.fromkeys(part, name))
    write_json(folder / f"{stem}.{ending}.index.json", {"metadata": {}, "weight_map": names})


def write_v15(folder: Path, stock: torch.nn.Module, tokenizer: bytes, **settings) -> Path:
    """LLaVA-1.5 as published: .bin shards with an old leftover, the tower apart beside it."""
    write_json(folder / "config.json", dict(ORIGINAL, **settings))
    write_tokenizer(folder, tokenizer)
    write_tower(folder.parent / "tower", stock)
    state = language_state(stock) | projector_state(stock)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    write_shards(folder, state, "bin")
    return folder


def write_v16(folder: Path, stock: torch.nn.Module, tokenizer: bytes, **settings) -> Path:
    """LLaVA-1.6 as published: safetensors, the tower's weights inside, tiles and newline."""
    config = dict(
        ORIGINAL, model_type="llava_llama", image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    write_json(folder / "config.json", dict(config, **settings))
    write_tokenizer(folder, tokenizer)
    write_tower(folder.parent / "tower", stock)
    (folder.parent / "tower" / "pytorch_model.bin").unlink()  # only its configuration is needed
    state = language_state(stock) | projector_state(stock)
    for key, value in vision_state(stock).items():
        state["model.vision_tower.vision_tower." + key] = value
    if "unpad" in settings.get("mm_patch_merge_type", "spatial_unpad"):  # else there is none
        state["model.image_newline"] = stock.model.image_newline.detach().clone()
    write_shards(folder, state, "safetensors")
    return folder


def write_vicuna(folder: Path, stock: torch.nn.Module, tokenizer: bytes) -> Path:
    """A bare language model, as `model_base` is."""
    config = dict(TEXT, architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu")
    write_json(folder / "config.json", config)
    write_tokenizer(folder, tokenizer)
    save_file(language_state(stock), folder / "model.safetensors")
    return folder
