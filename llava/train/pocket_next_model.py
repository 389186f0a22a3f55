"""The any-resolution pocket model: a stock ``LlavaNextForConditionalGeneration`` made of the pocket
model, its losses in training, and its files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from .pocket_data import Phase, normalize
from .pocket_forward import Probe, vision_features
from .pocket_lessons import PROBES
from .pocket_loss import WATCHED, Answers, look_loss, text_measures
from .pocket_model import _write_json
from .pocket_next_pictures import PINPOINTS

POSITIONS = 4096  # a picture takes up to 2,928
ROPE_THETA = 40_000.0
"""Base of the rotary positions, 10,000 in the pocket model. With a larger base the pocket
model's own weights answer far better before any training: 35.8, 52.5, 60.8 and 62.5 % exact with
10,000, 20,000, 40,000 and 160,000 (docs/pocket-next.md has the command)."""


def make_next(
    source: str | Path, rope_theta: float = ROPE_THETA
) -> LlavaNextForConditionalGeneration:
    """The pocket model's weights in LLaVA-NeXT's class, fp32.

    ``image_newline`` begins as what empty ground looks like: the projection of a grey picture,
    averaged over its patches."""
    old = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    old_config = old.config.to_dict()
    text = {**old_config["text_config"], "max_position_embeddings": POSITIONS}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": rope_theta}
    config = LlavaNextConfig(
        vision_config=old_config["vision_config"],
        text_config=text,
        image_token_id=old.config.image_token_id,
        projector_hidden_act=old.config.projector_hidden_act,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "sdpa"
    model = LlavaNextForConditionalGeneration(config)
    state = old.state_dict()
    with torch.no_grad():
        grey = torch.full((1, 336, 336, 3), 118, dtype=torch.uint8)
        h = vision_features(old.model.vision_tower, normalize(grey), torch.arange(576)[None])
        line = old.model.multi_modal_projector(h[:, 1:]).mean(dim=(0, 1))
    model.load_state_dict({**state, "model.image_newline": line})
    model.generation_config = copy.deepcopy(old.generation_config)
    return model


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """The pocket model's tokenizer, for longer prompts."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = POSITIONS
    return tokenizer


class NextAnswers(Answers):
    """Losses of one picture's questions. The vision tower takes no gradient."""

    def picture(self, batch: dict[str, Tensor]) -> Tensor:
        """(1, n, width): the picture's rows as they enter the decoder."""
        model = self.llava.model
        with torch.no_grad():
            h = vision_features(model.vision_tower, normalize(batch["pixels"]), batch["grid_ids"])
        patches = model.multi_modal_projector(h[:, 1:]).flatten(0, 1)
        rows = torch.cat([patches, model.image_newline.to(patches.dtype)[None]])
        return rows[batch["order"]][None]

    def forward(self, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        image = self.picture(batch)
        probes = {k: Probe(batch[k + "/rows"], *WATCHED[k]) for k in PROBES} if phase.look else {}
        text, right, kind = self.text_loss(
            image, batch["where"], batch["span"], batch, phase.stride, tuple(probes.values())
        )
        out: dict[str, Tensor] = {}
        loss = text
        for name, probe in probes.items():
            look = look_loss(probe, batch[name + "/want"])
            out["look_" + name] = look.detach()
            loss = loss + phase.look * look
        text_measures(out, text, right, kind)
        return out | {"loss": loss}


def export_next(
    model: LlavaNextForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Writes the Hugging Face layout: bf16 safetensors, tokenizer, processor files."""
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    folder.mkdir(parents=True, exist_ok=True)
    half: Any = copy.deepcopy(model).to(torch.bfloat16)
    half.config.dtype = torch.bfloat16
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    LlavaNextImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=PINPOINTS,
    ).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    fields["image_processor_type"] = "LlavaNextImageProcessor"
    fields["processor_class"] = "LlavaNextProcessor"
    _write_json(path, fields)
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaNextProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
        },
    )
