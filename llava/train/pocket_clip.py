"""A small CLIP text tower for the pocket model: ``python -m llava.train.pocket_clip``.

Some methods compare patches with the question in CLIP's common space. This trains, by CLIP's
contrastive loss on captions of scenes, a text tower, both projections and the vision tower's last
layer (which LLaVA never reads); everything up to the features that LLaVA reads stays frozen, so
that it is the pocket model's own tower. Frozen features are computed once, in files of 250 pictures
that a later run finds again; captions are drawn anew at every step. Written as a stock
``CLIPModel``, with how often the right caption of 32 and of 256 is found on scenes never trained
on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
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
HELD_OUT_SEED = 3_000_001
LENGTH = 77
END = "<|endoftext|>"
CHUNK = 250


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


def clip_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The pocket model's tokenizer as CLIP's: an end token after every text, and of the highest id.

    Stock CLIP pools where the highest id stands when the end token has id 2, as here it had."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": END})
    backend = tokenizer.backend_tokenizer
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tokenizer.bos_token, END)]
    backend.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A {END}", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=END,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        model_max_length=LENGTH,
    )


def make_clip(
    llava: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> CLIPModel:
    """A CLIPModel whose vision half is the pocket model's tower."""
    vision = llava.config.vision_config
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
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


def image_embeds(clip: CLIPModel, h: Tensor) -> Tensor:
    """(b, 128) unit vectors of the features (b, 577, width) that the last layer reads. Only CLS
    leaves that layer, so only its row is computed."""
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


def text_embeds(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """(b, 128) unit vectors of captions."""
    coded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    device = clip.logit_scale.device
    mask = coded["attention_mask"].to(device)
    ids = coded["input_ids"].to(device)
    pooled = clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    return F.normalize(pooled.float(), dim=-1)


@torch.no_grad()
def features(clip: CLIPModel, count: int, seed: int, folder: Path, weights: str) -> Tensor:
    """(count, 577, width) bf16: what the tower's last layer reads, of the scenes of a seed.

    Computed in chunks, each kept as a file named after the weights."""
    device = clip.logit_scale.device
    parts = []
    for first in tqdm(range(0, count, CHUNK), desc="frozen features", unit="chunk"):
        end = min(first + CHUNK, count)
        path = folder / f"{weights}-{seed}-{first}-{end}.safetensors"
        if not path.exists():
            rows = []
            for at in range(first, end, 25):
                scenes = [make_scene(seed, j) for j in range(at, min(at + 25, end))]
                pixels = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
                ids = torch.arange(576, device=device).expand(len(scenes), -1)
                with torch.autocast(device.type, torch.bfloat16):
                    h = vision_features(clip.vision_model, normalize(pixels.to(device)), ids)
                rows.append(h.to("cpu", torch.bfloat16))
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file({"features": torch.cat(rows)}, part)
            os.replace(part, path)
        parts.append(load_file(path)["features"])
    return torch.cat(parts)[:count]


@torch.no_grad()
def retrieval(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, held: Tensor
) -> dict[str, float]:
    """How often a held-out picture finds its caption among 32 and among all of them."""
    device = clip.logit_scale.device
    texts = [
        caption(make_scene(HELD_OUT_SEED, j), np.random.default_rng([HELD_OUT_SEED, j, 1]))
        for j in range(len(held))
    ]
    with torch.autocast(device.type, torch.bfloat16):
        image = torch.cat([image_embeds(clip, part.to(device)) for part in held.split(64)])
        text = torch.cat(
            [text_embeds(clip, tokenizer, texts[i : i + 64]) for i in range(0, len(texts), 64)]
        )
    scores = image @ text.T
    right = torch.arange(len(scores), device=scores.device)
    blocks = (scores[i : i + 32, i : i + 32] for i in range(0, len(scores), 32))
    few = [block.argmax(1) == right[: len(block)] for block in blocks]
    return {
        "of_32": round(torch.cat(few).float().mean().item(), 3),
        f"of_{len(scores)}": round((scores.argmax(1) == right).float().mean().item(), 3),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, default=Path("checkpoints/pocket-llava"))
    p.add_argument("--out", type=Path, default=Path("checkpoints/pocket-clip"))
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--pictures", type=int, default=6000, help="scenes whose features are kept")
    p.add_argument(
        "--features", type=Path, default=Path("outputs/pocket-clip"), help="where they are kept"
    )
    p.add_argument("--minutes", type=float, default=1e9, help="stop early after this long")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    tokenizer = clip_tokenizer(args.model)
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
    weights = hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest()[:12]
    cache = partial(features, clip, folder=args.features, weights=weights)
    train, held = cache(args.pictures, CLIP_SEED), cache(256, HELD_OUT_SEED)
    scenes = [make_scene(CLIP_SEED, j) for j in tqdm(range(args.pictures), desc="scenes")]
    log: list[dict[str, float]] = []
    begin, sums = time.time(), [0.0, 0.0]
    bar = tqdm(range(args.steps), desc="contrastive")
    for step in bar:
        rng = np.random.default_rng([CLIP_SEED, step, 2])
        picked = rng.choice(args.pictures, args.batch, replace=False)
        texts = [caption(scenes[int(j)], rng) for j in picked]
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 30) * max(0.03, 1 - step / args.steps)
        with torch.autocast(device.type, torch.bfloat16):
            image = image_embeds(clip, train[torch.from_numpy(picked)].to(device))
            text = text_embeds(clip, tokenizer, texts)
        logits = clip.logit_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(len(logits), device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums[0] += loss.item()
        sums[1] += (logits.argmax(1) == target).float().mean().item()
        if (step + 1) % 50 == 0:
            seen = {"loss": round(sums[0] / 50, 4), "right": round(sums[1] / 50, 4)}
            log.append({"step": step + 1, **seen, **retrieval(clip, tokenizer, held)})
            bar.write(json.dumps(log[-1]))
            sums = [0.0, 0.0]
        if time.time() - begin > 60 * args.minutes:
            break
    clip.cpu().to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    preprocessor = json.loads((args.model / "preprocessor_config.json").read_text())
    preprocessor.pop("processor_class", None)
    _write_json(args.out / "preprocessor_config.json", preprocessor)
    _write_json(
        args.out / "TRAINING.json",
        {
            "steps": step + 1,
            "pictures": args.pictures,
            "batch": args.batch,
            "lr": args.lr,
            "seed": 0,
            "scenes": CLIP_SEED,
            "log": log,
        },
    )


if __name__ == "__main__":
    main()
