"""The pocket model's shape: a stock ``LlavaForConditionalGeneration`` with few, narrow layers."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from .pocket_words import extend

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
CHAT_TEMPLATE = (
    "{{ '" + SYSTEM.replace("'", "\\'") + " ' }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}USER: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{{ ' ' }}"
    "{% elif m['role'] == 'assistant' %}ASSISTANT: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}</s>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Widths and depths. The vision tower's last layer is never read, so it is never trained."""

    vision_width: int = 160
    vision_layers: int = 7
    vision_mlp: int = 480
    width: int = 160
    layers: int = 16
    mlp: int = 416
    head: int = 40


SHAPES = {"pocket": Shape(), "tiny": Shape(64, 3, 128, 64, 4, 128, 32)}


def _corpus() -> list[str]:
    """Every fixed text of the pocket world; characters on signs stay single tokens."""
    from playground.pocket import questions as q
    from playground.pocket import vocabulary as v

    words = [*v.COLORS, *v.SHAPES, *v.PLURALS.values(), *v.PLACES, "yes", "no", "center", "an"]
    texts = [SYSTEM, "USER: ASSISTANT:", "\n" + q.SUFFIX, "\nReference OCR token: "]
    texts += [" " + w for w in words] + words
    texts += [t.replace("{", "").replace("}", "") for ts in q._TEXT.values() for t in ts]
    texts += ["A scene with a red circle, two blue signs that say and a textured background."]
    return [*texts, *SYSTEM.split(), "Is Are Do Does Which Where Who Describe the image in detail."]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE: known words are one token, capitals and digits on signs one token each."""
    tok = Tokenizer(models.BPE(unk_token=None))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # " USER", "Reference" and the like stay whole; other capitals and digits stand alone.
            pre_tokenizers.Split(
                Regex(r" ?USER| ?ASSISTANT| ?OCR| ?[A-Z][a-z]+|[A-Z]|[0-9]"), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(_corpus(), trainer)
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tok = extend(tok)
    tok.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
    )


def make_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """LLaVA-1.5's configuration with the pocket's widths."""
    vocab = -(-len(tokenizer) // 64) * 64
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in SPECIAL}
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_mlp,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_width // shape.head,
        image_size=336,
        patch_size=14,
        projection_dim=shape.vision_width,
        initializer_range=0.02,
    )
    text = LlamaConfig(
        vocab_size=vocab,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // shape.head,
        num_key_value_heads=shape.width // shape.head,
        max_position_embeddings=2048,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<image>"],
        image_seq_length=576,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _sincos(side: int, width: int) -> torch.Tensor:
    """(side * side, width): sines and cosines of both coordinates, so that near is alike."""
    t = torch.arange(side, dtype=torch.float32)
    f = math.pi / 2 * 0.02 ** (torch.arange(width // 4) / (width // 4))
    one = torch.cat([torch.sin(t[:, None] * f), torch.cos(t[:, None] * f)], dim=1)
    y, x = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    return torch.cat([y, x], dim=-1).reshape(side * side, width)


def make_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Fresh weights; seed torch before. Every second decoder layer begins as the identity."""
    config = make_config(shape, tokenizer)
    config._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(config)
    # Random places make neighbours hard to find; these are trained on like any other.
    places = model.model.vision_tower.embeddings.position_embedding.weight
    places.data[1:] = 0.4 * _sincos(24, shape.vision_width)
    text = config.text_config
    for i, layer in enumerate(model.model.language_model.layers):
        scale = (2 * text.num_hidden_layers) ** -0.5
        for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
            # Odd layers begin as the identity: the first phases may leave them out, exactly.
            out.weight.data.mul_(0.0 if i % 2 else scale)
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    return model


def grow(model: LlavaForConditionalGeneration) -> None:
    """Takes the odd decoder layers, left out so far, into use: each becomes a copy of the layer
    before it that still writes zeros. The model's outputs do not change."""
    layers = model.model.language_model.layers
    with torch.no_grad():
        for even, odd in zip(layers[::2], layers[1::2], strict=True):
            state = even.state_dict()
            for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                state[name] = torch.zeros_like(state[name])
            odd.load_state_dict(state)


def export(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: str | Path
) -> None:
    """Writes the Hugging Face layout: bf16 safetensors, tokenizer, processor files."""
    import copy

    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.config.dtype = torch.bfloat16
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    image.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    fields["image_processor_type"] = "CLIPImageProcessor"
    fields["processor_class"] = "LlavaProcessor"
    _write_json(path, fields)
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
        },
    )


def _write_json(path: Path, value: object) -> None:
    tmp = path.with_suffix(".tmp")
    tmp.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(tmp, path)
