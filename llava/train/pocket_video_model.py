"""The pocket video model: a stock ``VideoLlavaForConditionalGeneration`` made of the pocket model.

Video-LLaVA's geometry: frames of 224 pixels, 16 x 16 patches and CLS, 257 tokens a frame, 2,056 for
eight. Both towers are the pocket model's, with a 16 x 16 window of its 24 x 24 position embeddings.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from .pocket_model import CHAT_TEMPLATE, _write_json, make_tokenizer

VIDEO = "<video>"
SIDE, WINDOW, CORNER = 24, 16, 4  # of the image model's grid, the window's rows 4 to 19
FRAMES = 8
WORDS = (
    " end", " start", " appears", " disappears", " moves", " move", " direction", " up", " down",
)  # fmt: skip
CHAT = CHAT_TEMPLATE.replace(
    "{% for c in m['content'] if c['type'] == 'text' %}",
    "{% for c in m['content'] if c['type'] == 'video' %}" + VIDEO + "\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}",
    1,
)


def make_video_tokenizer() -> PreTrainedTokenizerFast:
    """The pocket model's, ids unchanged, with tokens for the words of clips behind them."""
    tokenizer = make_tokenizer()
    inner = tokenizer.backend_tokenizer
    inner.add_tokens([AddedToken(w, normalized=False) for w in WORDS])
    inner.add_special_tokens([AddedToken(VIDEO, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>", "video_token": VIDEO},
        chat_template=CHAT,
    )


def window_ids() -> torch.Tensor:
    """(256,) places on the image model's 24 x 24 grid of the video model's 16 x 16."""
    end = CORNER + WINDOW
    return torch.arange(SIDE * SIDE).view(SIDE, SIDE)[CORNER:end, CORNER:end].reshape(-1)


def from_pocket(
    llava: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> VideoLlavaForConditionalGeneration:
    """The video model with the image model's weights; its new words begin at related ones."""
    vision = copy.deepcopy(llava.config.vision_config).to_dict()
    text = copy.deepcopy(llava.config.text_config)
    text.max_position_embeddings = 4096
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"{len(tokenizer)} tokens but the decoder has {text.vocab_size}")
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**{**vision, "image_size": 14 * WINDOW}),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        image_seq_length=WINDOW * WINDOW,
        video_seq_length=FRAMES * (WINDOW * WINDOW + 1),
        vision_feature_layer=llava.config.vision_feature_layer,
        vision_feature_select_strategy="default",
    )
    config._attn_implementation = "sdpa"
    model = VideoLlavaForConditionalGeneration(config)
    parts = llava.model
    tower = dict(parts.vision_tower.state_dict())
    places = "embeddings.position_embedding.weight"
    keep = torch.cat([torch.zeros(1, dtype=torch.long), window_ids() + 1])
    tower[places] = tower[places][keep]
    tower.pop("embeddings.position_ids", None)
    for own in (model.model.image_tower, model.model.video_tower):
        own.load_state_dict(tower)
    model.model.multi_modal_projector.load_state_dict(parts.multi_modal_projector.state_dict())
    model.model.language_model.load_state_dict(parts.language_model.state_dict())
    model.lm_head.load_state_dict(llava.lm_head.state_dict())
    model.generation_config = copy.deepcopy(llava.generation_config)
    _introduce(model, tokenizer)
    return model


def _introduce(
    model: VideoLlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Embeddings of new words begin at known ones that are near in meaning."""
    near = {
        " end": " below", " start": " above", " appears": " there", " disappears": " there",
        " moves": " which", " move": " which", " direction": " nearest", " up": " above",
        " down": " below",
    }  # fmt: skip
    with torch.no_grad():
        for table in (model.model.language_model.embed_tokens.weight, model.lm_head.weight):
            for word, known in near.items():
                (new,) = tokenizer(word, add_special_tokens=False).input_ids
                old = tokenizer(known, add_special_tokens=False).input_ids
                table[new] = table[old].mean(0)


def export_video(
    model: VideoLlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
) -> None:
    """Writes the Hugging Face layout: bf16 safetensors, tokenizer, processor files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.config.dtype = torch.bfloat16
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = 14 * WINDOW
    common = {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
        "processor_class": "VideoLlavaProcessor",
    }
    names = {"preprocessor_config.json": ("image_processor_type", "VideoLlavaImageProcessor")}
    names["video_preprocessor_config.json"] = ("video_processor_type", "VideoLlavaVideoProcessor")
    for name, (key, value) in names.items():
        _write_json(folder / name, {**common, key: value})
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "VideoLlavaProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "video_token": VIDEO,
            "num_additional_image_tokens": 1,
        },
    )


def tower_digest(tower: torch.nn.Module) -> str:
    """SHA-256 over a tower's weights in bf16: frozen is bit for bit."""
    import hashlib

    digest = hashlib.sha256()
    for name, x in sorted(tower.state_dict().items()):
        digest.update(json.dumps([name, list(x.shape)]).encode())
        digest.update(x.detach().to(torch.bfloat16).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
