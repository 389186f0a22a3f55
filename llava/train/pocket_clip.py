"""A small CLIP text tower for the pocket model: ``python -m llava.train.pocket_clip``.

Some methods compare patches with the question in CLIP's common space. This trains, by CLIP's
contrastive loss on captions of scenes, a text tower, both projections and the vision tower's last
layer (which LLaVA never reads); everything up to the features that LLaVA reads stays frozen, so
that it is the pocket model's own tower. Written as a stock ``CLIPModel``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from playground.pocket.render import render
from playground.pocket.scene import Scene, Thing, make_scene

from .pocket_data import normalize
from .pocket_forward import attend, vision_features
from .pocket_model import _write_json

CLIP_SEED = 3_000_000
LENGTH = 77


def phrase(t: Thing) -> str:
    a = "an" if t.color == "orange" else "a"
    return (
        f"{a} {t.color} {t.shape}"
        if t.kind == "shape"
        else f"{a} {t.color} sign that says {t.text}"
    )


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Names two to six of the scene's things."""
    n = min(int(rng.integers(2, 7)), len(scene.things))
    some = [scene.things[int(i)] for i in rng.permutation(len(scene.things))[:n]]
    return "A scene with " + ", ".join(phrase(t) for t in some)


def make_clip(
    llava: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> CLIPModel:
    """A CLIPModel whose vision half is the pocket model's tower."""
    vision = llava.config.vision_config
    text = CLIPTextConfig(
        vocab_size=llava.config.text_config.vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128
    )
    clip = CLIPModel(config)
    clip.vision_model.load_state_dict(llava.model.vision_tower.state_dict())
    return clip


def image_embeds(clip: CLIPModel, pixels: Tensor) -> Tensor:
    """(b, 128) unit vectors. Only CLS leaves the last layer, so only its row is computed there."""
    with torch.no_grad():
        ids = torch.arange(576, device=pixels.device).expand(len(pixels), -1)
        h = vision_features(clip.vision_model, pixels, ids)
    layer = clip.vision_model.encoder.layers[-1]
    a = layer.self_attn
    y = layer.layer_norm1(h)
    b, n, width = h.shape
    q = a.q_proj(y[:, :1]).view(b, 1, -1, a.head_dim).transpose(1, 2)
    k, v = (f(y).view(b, n, -1, a.head_dim).transpose(1, 2) for f in (a.k_proj, a.v_proj))
    x = h[:, :1] + a.out_proj(attend(q, k, v, None).transpose(1, 2).reshape(b, 1, width))
    x = x + layer.mlp(layer.layer_norm2(x))
    return F.normalize(
        clip.visual_projection(clip.vision_model.post_layernorm(x[:, 0])).float(), dim=-1
    )


def batch(
    step: int, size: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, dict[str, Tensor]]:
    pictures, texts = [], []
    for j in range(size):
        scene = make_scene(CLIP_SEED, step, j)
        pictures.append(render(scene))
        texts.append(caption(scene, np.random.default_rng([CLIP_SEED, step, j, 1])) + "</s>")
    coded = tokenizer(
        texts, padding="max_length", padding_side="right", truncation=True, max_length=LENGTH,
        return_tensors="pt",
    )  # fmt: skip
    coded["input_ids"][coded["input_ids"][:, -1] != tokenizer.pad_token_id, -1] = (
        tokenizer.eos_token_id
    )
    return torch.from_numpy(np.stack(pictures)), dict(coded)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, default=Path("checkpoints/pocket-llava"))
    p.add_argument("--out", type=Path, default=Path("checkpoints/pocket-clip"))
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--minutes", type=float, default=1e9, help="stop early after this long")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    llava = LlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    clip = make_clip(llava, tokenizer).to(device)
    clip.requires_grad_(False)
    for part in (
        clip.text_model, clip.text_projection, clip.visual_projection,
        clip.vision_model.encoder.layers[-1], clip.vision_model.post_layernorm,
    ):  # fmt: skip
        part.requires_grad_(True)
    clip.logit_scale.requires_grad_(True)
    tuned = [q for q in clip.parameters() if q.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=args.lr, weight_decay=0.05)
    log: list[dict[str, float]] = []
    begin, step = time.time(), 0
    sums = [0.0, 0.0]
    while step < args.steps and time.time() - begin < 60 * args.minutes:
        pictures, coded = batch(step, args.batch, tokenizer)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 30) * max(0.03, 1 - step / args.steps)
        with torch.autocast(device.type, torch.bfloat16):
            image = image_embeds(clip, normalize(pictures.to(device)))
            coded = {k: x.to(device) for k, x in coded.items()}
            text = clip.get_text_features(**coded).pooler_output
        text = F.normalize(text.float(), dim=-1)
        logits = clip.logit_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(len(logits), device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        sums[0] += loss.item()
        sums[1] += (logits.argmax(1) == target).float().mean().item()
        if step % 20 == 0:
            log.append(
                {"step": step, "loss": round(sums[0] / 20, 4), "right": round(sums[1] / 20, 4)}
            )
            print(json.dumps(log[-1]), flush=True)
            sums = [0.0, 0.0]
    clip.cpu().to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    preprocessor = json.loads((args.model / "preprocessor_config.json").read_text())
    preprocessor.pop("processor_class", None)
    _write_json(args.out / "preprocessor_config.json", preprocessor)
    _write_json(
        args.out / "TRAINING.json",
        {
            "steps": step,
            "batch": args.batch,
            "lr": args.lr,
            "seed": 0,
            "scenes": CLIP_SEED,
            "log": log,
        },
    )


if __name__ == "__main__":
    main()
