"""The pocket video model's forward pass and losses in training. The tower is frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, VideoLlavaForConditionalGeneration

from playground.pocket.clip_questions import CLIP_TYPES

from .pocket_data import IGNORE, normalize
from .pocket_forward import Probe, decoder_states, vision_features
from .pocket_loss import WATCHED, look_loss
from .pocket_video_data import CLIP_PROBES, VideoPhase

WHEN_LAYER = 2  # behind it, visual tokens are asked when they are
SHARES = {"word": 0.3, "number": 0.5, "text_start": 0.5, "text_end": 0.5}


class PocketVideo(nn.Module):
    """The video model; ``forward`` returns the losses of a batch."""

    def __init__(
        self, llava: VideoLlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        self.llava = llava
        for tower in (llava.model.image_tower, llava.model.video_tower):
            tower.requires_grad_(False)
        ids = [tokenizer(w, add_special_tokens=False).input_ids[0] for w in (" end", " start")]
        self.when = torch.tensor(ids)
        # Of each question's answer the whole counts about one; spaces and ends (-1) little.
        self.weights = torch.tensor([SHARES.get(t, 1.0) for t in CLIP_TYPES] + [0.05])

    def features(self, pixels: Tensor, grid_ids: Tensor) -> Tensor:
        """(b, frames, h, w, 3) uint8 and (b, patches) -> (b, frames * (1 + patches), width):
        projected, with CLS, as the stock model's ``get_video_features``."""
        b, frames = pixels.shape[:2]
        flat = normalize(pixels.flatten(0, 1))
        ids = grid_ids.repeat_interleave(frames, 0)
        with torch.no_grad():
            h = vision_features(self.llava.model.video_tower, flat, ids)
        image = self.llava.model.multi_modal_projector(h)
        return image.reshape(b, -1, image.shape[-1])

    def when_loss(self, states: Tensor, frames: int) -> Tensor:
        """States (b, visual, width), read as words, say how late their frame is: " end" against
        " start"."""
        n = states.shape[1] // frames
        late = torch.linspace(0, 1, frames, device=states.device).repeat_interleave(n)
        words = self.llava.lm_head.weight[self.when.to(states.device)]
        said = (self.llava.model.language_model.norm(states) @ words.to(states.dtype).T).float()
        return F.binary_cross_entropy_with_logits(
            said[..., 0] - said[..., 1], late.expand(states.shape[:2])
        )

    def forward(self, batch: dict[str, Tensor], phase: VideoPhase) -> dict[str, Tensor]:
        image = self.features(batch["pixels"], batch["grid_ids"])
        b, n = image.shape[:2]
        lm = self.llava.model.language_model
        prefix = lm.embed_tokens(batch["prefix"]).expand(b, -1, -1).to(image.dtype)
        x = torch.cat([prefix, image, lm.embed_tokens(batch["ids"]).to(image.dtype)], dim=1)
        p = prefix.shape[1]
        places = batch["places"]
        head = torch.arange(p, device=x.device).expand(b, -1)
        pos = torch.cat([head, p + places[:, :-1], p + places[:, -1:] + batch["pos"]], dim=1)
        probes = {k: Probe(batch[k + "/rows"], *WATCHED[k]) for k in CLIP_PROBES if phase.look}
        taps = {WHEN_LAYER: x[:0]} if phase.look else {}
        watch = tuple(probes.values())
        states = decoder_states(lm, x, pos, batch["seg"], p + n, probes=watch, taps=taps)
        target = batch["labels"][:, 1:]
        where = target != IGNORE
        logits = self.llava.lm_head(states[:, :-1][where]).float()
        right = logits.argmax(-1) == target[where]
        kind = batch["kind"][:, 1:][where]
        weight = self.weights.to(x.device)[kind]
        each = F.cross_entropy(logits, target[where], reduction="none")
        text = (each * weight).sum() / weight.sum().clamp(min=1e-6)
        out, loss = {"text": text.detach()}, text
        if taps:
            when = self.when_loss(taps[WHEN_LAYER][:, p : p + n], batch["pixels"].shape[1])
            out["when"] = when.detach()
            loss = loss + phase.look * 3 * when
        for name, probe in probes.items():
            look = look_loss(probe, batch[name + "/want"])
            out["look_" + name] = look.detach()
            loss = loss + phase.look * look
        for i, name in enumerate(CLIP_TYPES):
            some = kind == i
            out["n/" + name] = some.sum()
            out["right/" + name] = right[some].sum()
        out["loss"] = loss
        return out
