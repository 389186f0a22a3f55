"""The pocket model's forward pass and losses in training.

The vision tower is run up to ``hidden_states[-2]``, which is what LLaVA reads; throw-away linear
heads on it predict what each patch shows (dense labels) and, from CLS, what the scene holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from playground.pocket import vocabulary as v
from playground.pocket.labels import CLS_SIZE, HEADS

from .pocket_data import IGNORE, Phase, normalize
from .pocket_forward import Probe, decoder_states, vision_features
from .pocket_lessons import KINDS, PROBES

# Where attention is supervised (see `pocket_lessons`): layers and the first of two heads.
WATCHED = {
    "bind": ((0, 1), 2),
    "key": ((2, 4), 0),
    "point": ((4, 8), 2),
    "answer": ((6, 10), 0),
    "letter": ((5, 7), 2),
    "option": ((12, 14), 2),
}


def look_loss(probe: Probe, wanted: Tensor) -> Tensor:
    """Minus log of the attention that the watched rows pay to the rows wanted.

    wanted: (b, rows, n) bool; all False does not count.
    """
    some = wanted.any(-1)
    loss = torch.zeros((), device=wanted.device)
    for seen in probe.seen:
        mass = (seen * wanted[:, None]).sum(-1)
        logs = mass.transpose(1, 2)[some].clamp(min=1e-5).log()
        loss = loss - logs.sum() / max(logs.numel(), 1)
    return loss / max(len(probe.seen), 1)  # a shallow model has fewer layers to watch


DIRECTIONS = ("right", "below", "left", "above")
# Behind these layers patches say where they are, and key words where the thing is they name.
PATCH_LAYER, PLACE_LAYER = 1, 4


def patch_places(batch: dict[str, Tensor], n: int) -> Tensor:
    """(b, n, 3): row, x and y of each patch; none where patches are numbered without gaps, so that
    their positions do not tell where they are."""
    grid = batch["grid_ids"]
    row = torch.arange(n, device=grid.device).expand_as(grid)
    known = batch["stretch"] | (n == 576)
    x, y = (grid % 24 + 0.5) / 24, (grid // 24 + 0.5) / 24
    return torch.stack([torch.where(known, row, -1), x, y], dim=-1).float()


class Answers(nn.Module):
    """A LLaVA model, and the losses of questions packed behind one picture."""

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.llava = llava
        # Of each question's answer the whole counts about one; spaces and ends (-1) little.
        share = {"word": 0.3, "number": 0.5, "place_color": 2.0, "place_shape": 2.0}
        self.weights = torch.tensor([share.get(t, 1.0) for t in KINDS] + [0.05])

    def text_loss(
        self, image: Tensor, where: Tensor, span: Tensor | int, batch: dict[str, Tensor],
        stride: int = 1, probes: tuple[Probe, ...] = (), taps: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Cross entropy of the answers; which of their tokens are right; the type of each.

        image: (b, n, width), projected; where: (b, n), their positions counted from the first;
        span: how many positions the picture takes."""
        model = self.llava.model
        b, n = image.shape[:2]
        embed = model.language_model.embed_tokens
        prefix = embed(batch["prefix"]).expand(b, -1, -1).to(image.dtype)
        x = torch.cat([prefix, image, embed(batch["ids"]).to(image.dtype)], dim=1)
        p = prefix.shape[1]
        dev = x.device
        head = torch.cat([torch.arange(p, device=dev).expand(b, -1), p + where], dim=1)
        blind = batch["blind"]
        # Without a picture the prompt's last space belongs to the first word of the question.
        pos = torch.cat([head, torch.where(blind, p - 1, p + span) + batch["pos"]], dim=1)
        out = decoder_states(
            model.language_model, x, pos, batch["seg"], p + n, stride, probes, blind, p - 1,
            taps,
        )  # fmt: skip
        target = batch["labels"][:, 1:]
        some = target != IGNORE
        logits = self.llava.lm_head(out[:, :-1][some]).float()
        right = logits.argmax(-1) == target[some]
        kind = batch["kind"][:, 1:][some]
        each = F.cross_entropy(logits, target[some], reduction="none")
        weight = self.weights.to(dev)[kind]
        return (each * weight).sum() / weight.sum().clamp(min=1e-6), right, kind


def text_measures(out: dict[str, Tensor], text: Tensor, right: Tensor, kind: Tensor) -> None:
    """Puts the loss and, for each type of question, how many answer tokens are right."""
    out["text"] = text.detach()
    for i, name in enumerate(KINDS):
        some = kind == i
        out["n/" + name] = some.sum()
        out["right/" + name] = right[some].sum()


class Pocket(Answers):
    """The LLaVA model and its throw-away heads; ``forward`` returns the losses of a batch."""

    def __init__(
        self, llava: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__(llava)
        # The token of each class's name: as in a question or an answer.
        names = {
            "color": [f" {c}" for c in v.COLORS],
            "shape": [f" {s}" for s in (*v.SHAPES, "sign")],
            "char": list(v.CHARS),
        }
        self.words = {
            k: torch.tensor([tokenizer(w, add_special_tokens=False).input_ids[0] for w in words])
            for k, words in names.items()
        }
        one = [tokenizer(f" {w}", add_special_tokens=False).input_ids[0] for w in DIRECTIONS]
        self.directions = torch.tensor(one)
        width = llava.config.vision_config.hidden_size
        self.heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in HEADS.items()})
        self.norm = nn.LayerNorm(width)
        self.cls_head = nn.Linear(width, CLS_SIZE)

    def align_loss(self, image: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Projector alignment: a projected patch (b, n, width) is nearest, by cosine, to the
        embeddings (of input and of output) of the words for what it shows."""
        loss = image.new_zeros((), dtype=torch.float32)
        for k, words in self.words.items():
            labels = batch[k]
            some = labels > 0
            if not some.any():
                continue
            x = F.normalize(image[some].float(), dim=-1)
            for table in (self.llava.model.language_model.embed_tokens, self.llava.lm_head):
                y = F.normalize(table.weight[words.to(x.device)].float(), dim=-1)
                loss = loss + F.cross_entropy(15 * x @ y.T, labels[some] - 1)
        return loss

    def place_loss(self, states: Tensor, places: Tensor) -> Tensor:
        """States (b, n, width), read as words, say how far right and how far down (see ``places``)
        what they stand for is: "right" against "left", "below" against "above"."""
        some = places[..., 0] >= 0
        if not some.any():
            return states.new_zeros((), dtype=torch.float32)
        at = places[..., 0].clamp(min=0).long()
        rows = states.gather(1, at[..., None].expand(-1, -1, states.shape[-1]))[some]
        words = self.llava.lm_head.weight[self.directions.to(rows.device)]
        said = (self.llava.model.language_model.norm(rows) @ words.to(rows.dtype).T).float()
        return F.binary_cross_entropy_with_logits(said[:, :2] - said[:, 2:], places[some][:, 1:])

    def dense_loss(self, h: Tensor, batch: dict[str, Tensor], out: dict[str, Tensor]) -> Tensor:
        """What patches and CLS of the features (b, 1 + n, width) show; measures go to ``out``."""
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
            right = logits.argmax(-1)[some] == labels[some]
            out["acc_" + k] = right.float().sum() / some.sum().clamp(min=1)
        cls = F.binary_cross_entropy_with_logits(self.cls_head(y[:, 0]).float(), batch["cls"])
        out["dense"], out["cls"] = dense.detach(), cls.detach()
        return dense + 3.0 * cls

    def forward(self, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not phase.frozen):
            h = vision_features(
                self.llava.model.vision_tower, normalize(batch["pixels"]), batch["grid_ids"]
            )
        out: dict[str, Tensor] = {}
        loss = h.new_zeros((), dtype=torch.float32)
        if not phase.frozen:
            loss = self.dense_loss(h, batch, out) * phase.dense
        if phase.text_len:
            image = self.llava.model.multi_modal_projector(h[:, 1:])
            if phase.align:
                align = self.align_loss(image, batch)
                out["align"] = align.detach()
                loss = loss + phase.align * align
            probes: dict[str, Probe] = {}
            if phase.look:
                probes = {k: Probe(batch[k + "/rows"], *WATCHED[k]) for k in PROBES}
            watch = tuple(probes.values())
            taps = {k: image[:0] for k in (PATCH_LAYER, PLACE_LAYER) if phase.forms}
            p, n = len(batch["prefix"]), image.shape[1]
            dense = torch.arange(n, device=image.device).expand(len(image), -1)
            where = torch.where(batch["stretch"], batch["grid_ids"], dense)
            span = torch.where(batch["stretch"], 576, n)
            text, right, kind = self.text_loss(image, where, span, batch, phase.stride, watch, taps)
            if taps and len(taps[PLACE_LAYER]):
                own = self.place_loss(taps[PATCH_LAYER][:, p : p + n], patch_places(batch, n))
                place = self.place_loss(taps[PLACE_LAYER][:, p + n :], batch["places"])
                out["place_patch"], out["place"] = own.detach(), place.detach()
                loss = loss + phase.look * (3 * own + place)
            for name, probe in probes.items():
                look = look_loss(probe, batch[name + "/want"])
                out["look_" + name] = look.detach()
                loss = loss + phase.look * look
            text_measures(out, text, right, kind)
            loss = loss + text
        out["loss"] = loss
        return out
