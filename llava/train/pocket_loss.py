"""The pocket model's forward pass and losses in training.

The vision tower is run up to ``hidden_states[-2]``, which is what LLaVA reads; throw-away linear
heads on it predict what each patch shows (dense labels) and, from CLS, what the scene holds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from playground.pocket.labels import CLS_SIZE, HEADS
from playground.pocket.questions import TYPES

from .pocket_data import IGNORE, Phase, normalize
from .pocket_forward import decoder_states, vision_features


class Pocket(nn.Module):
    """The LLaVA model and its throw-away heads; ``forward`` returns the losses of a batch."""

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.llava = llava
        width = llava.config.vision_config.hidden_size
        self.heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in HEADS.items()})
        self.norm = nn.LayerNorm(width)
        self.cls_head = nn.Linear(width, CLS_SIZE)

    def text_loss(self, feats: Tensor, batch: dict[str, Tensor], stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy of the answers; which of their tokens are right; the type of each."""
        model = self.llava.model
        image = model.multi_modal_projector(feats)
        b, n = image.shape[:2]
        embed = model.language_model.embed_tokens
        prefix = embed(batch["prefix"]).expand(b, -1, -1).to(image.dtype)
        x = torch.cat([prefix, image, embed(batch["ids"]).to(image.dtype)], dim=1)
        p = prefix.shape[1]
        dev = x.device
        dense = torch.arange(n, device=dev).expand(b, -1)
        grid = torch.where(batch["stretch"], batch["grid_ids"], dense)
        span = torch.where(batch["stretch"], 576, n)
        head = torch.cat([torch.arange(p, device=dev).expand(b, -1), p + grid], dim=1)
        pos = torch.cat([head, p + span + batch["pos"]], dim=1)
        out = decoder_states(model.language_model, x, pos, batch["seg"], p + n, stride)
        target = batch["labels"][:, 1:]
        where = target != IGNORE
        logits = self.llava.lm_head(out[:, :-1][where]).float()
        right = logits.argmax(-1) == target[where]
        return F.cross_entropy(logits, target[where]), right, batch["kind"][:, 1:][where]

    def forward(self, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        h = vision_features(
            self.llava.model.vision_tower, normalize(batch["pixels"]), batch["grid_ids"]
        )
        out: dict[str, Tensor] = {}
        y = self.norm(h)
        dense = h.new_zeros((), dtype=torch.float32)
        for k, head in self.heads.items():
            logits = head(y[:, 1:]).float().flatten(0, 1)
            labels = batch[k].flatten()
            weight = torch.ones(logits.shape[1], device=logits.device)
            weight[0] = 0.15  # most patches show nothing
            loss = F.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORE)
            dense = dense + loss * (2.0 if k == "char" else 1.0)
            some = labels > 0
            out["acc_" + k] = (logits.argmax(-1)[some] == labels[some]).float().mean()
        cls = F.binary_cross_entropy_with_logits(self.cls_head(y[:, 0]).float(), batch["cls"])
        out["dense"], out["cls"] = dense.detach(), cls.detach()
        loss = phase.dense * (dense + 3.0 * cls)
        if phase.text_len:
            text, right, kind = self.text_loss(h[:, 1:], batch, phase.stride)
            out["text"] = text.detach()
            for i, name in enumerate(TYPES):
                some = kind == i
                out["n/" + name] = some.sum()
                out["right/" + name] = right[some].sum()
            loss = loss + text
        out["loss"] = loss
        return out
