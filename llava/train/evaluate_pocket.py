"""How well the pocket model answers, for each type of question, and how much dropping costs it.

``python -m llava.train.evaluate_pocket --model checkpoints/pocket-llava`` prints exact-match
accuracy for: the full model; the same with a grey picture; the majority answer of each type; and
the model fed 64 of the 576 patches at the decoder's input (positions renumbered): evenly spread,
random, and an oracle that keeps the patches which the question asks for (the rest evenly spread).

Greedy decoding gives the answer exactly when, fed the answer, the model's first choice is right at
each of its tokens. So one pass over prompt and answer scores a question; nothing is generated.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from llava.eval.files import write_atomically

from .pocket_data import normalize
from .pocket_forward import decoder_states, vision_features
from .pocket_model import SYSTEM

Sample = dict[str, object]


def read_set(folder: Path, limit: int) -> list[dict]:
    """Questions joined with their regions, in file order."""
    lines = (folder / "llava_textvqa_val_v051_ocr.jsonl").read_text().splitlines()
    regions = json.loads((folder / "regions.json").read_text())
    if len(lines) != len(regions):
        raise ValueError(f"{folder}: {len(lines)} questions but {len(regions)} regions")
    out = []
    for line, region in zip(lines, regions, strict=True):
        q = json.loads(line)
        if q["question_id"] != region["image_id"] or not q["text"].startswith(region["question"]):
            raise ValueError(f"{folder}: regions.json does not belong to {q['question_id']}")
        out.append({**region, "image": q["image"], "prompt": q["text"]})
    return out[:limit] if limit else out


def even(n: int, total: int = 576) -> np.ndarray:
    """n ids spread evenly over 0..total-1."""
    return ((np.arange(n) + 0.5) * total / n).astype(np.int64)


def oracle(region: list[int], n: int, total: int = 576) -> np.ndarray:
    """The region's patches (the first n of them), filled up with evenly spread others."""
    kept = list(region)[:n]
    others = np.setdiff1d(np.arange(total), kept)
    return np.sort(
        np.concatenate([kept, others[even(n - len(kept), len(others))]]).astype(np.int64)
    )


class Scorer:
    """Feeds features and questions to the decoder and tells which answers are right."""

    family: Any = LlavaForConditionalGeneration

    def __init__(self, folder: Path, device: str) -> None:
        self.model = self.family.from_pretrained(folder, dtype=torch.float32)
        self.model.eval().to(device)
        self.tok = AutoTokenizer.from_pretrained(folder)
        self.device = torch.device(device)
        self.prefix = torch.tensor(self.tok(SYSTEM + " USER: ").input_ids, device=self.device)

    @torch.inference_mode()
    def features(self, pictures: np.ndarray) -> Tensor:
        """(b, 336, 336, 3) uint8 -> projected features (b, 576, width)."""
        grid = torch.arange(576, device=self.device).expand(len(pictures), -1)
        pixels = normalize(torch.from_numpy(pictures).to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16):
            h = vision_features(self.model.model.vision_tower, pixels, grid)[:, 1:]
            return self.model.model.multi_modal_projector(h)

    def right(self, feats: Tensor, rows: list[dict]) -> list[bool]:
        """One picture's features (n, width) and its questions -> which greedy answers are exact.

        A row whose ``picture`` is False is asked without the picture."""
        out = [False] * len(rows)
        for shown in (True, False):
            some = [i for i, r in enumerate(rows) if r.get("picture", True) is shown]
            if some:
                got = self._right(feats if shown else feats[:0], [rows[i] for i in some], shown)
                for i, ok in zip(some, got, strict=True):
                    out[i] = ok
        return out

    @torch.inference_mode()
    def _right(self, feats: Tensor, rows: list[dict], shown: bool) -> list[bool]:
        # Without a picture the prompt's last space belongs to the first word.
        prefix, lead = (self.prefix, "\n") if shown else (self.prefix[:-1], " ")
        ids: list[int] = []
        target: list[int] = []
        pos: list[int] = []
        seg: list[int] = []
        for i, r in enumerate(rows):
            ask = self.tok(f"{lead}{r['prompt']} ASSISTANT:", add_special_tokens=False).input_ids
            ans = self.tok(f" {r['answer']}", add_special_tokens=False).input_ids
            ans = [*ans, self.tok.eos_token_id]
            ids += ask + ans
            target += [-1] * (len(ask) - 1) + ans + [-1]
            pos += range(len(ask) + len(ans))
            seg += [i] * (len(ask) + len(ans))
        lm = self.model.model.language_model
        t = torch.tensor([ids, target, pos, seg], device=self.device)
        x = torch.cat([lm.embed_tokens(prefix), feats.float(), lm.embed_tokens(t[0])])[None]
        shared = len(prefix) + feats.shape[0]
        where = torch.cat([torch.arange(shared, device=self.device), shared + t[2]])[None]
        with torch.autocast(self.device.type, torch.bfloat16):
            h = decoder_states(lm, x, where, t[3][None], shared)
            best = self.model.lm_head(h)[0].float().argmax(-1)
        wrong = (best != t[1]) & (t[1] >= 0)
        bad = {int(s) for s in t[3][wrong]}
        return [i not in bad for i in range(len(rows))]


def evaluate(
    scorer: Scorer, folder: Path, rows: list[dict], tokens: int, seed: int
) -> dict[str, list]:
    """For each condition one bool for each question, in order."""
    by_picture: dict[str, list[int]] = {}
    for i, r in enumerate(rows):
        by_picture.setdefault(str(r["image"]), []).append(i)
    names = ["full", "blank", f"uniform {tokens}", f"random {tokens}", f"oracle {tokens}"]
    out: dict[str, list] = {n: [False] * len(rows) for n in names}
    grey = np.full((1, 336, 336, 3), (122, 116, 104), np.uint8)  # LLaVA's padding colour
    blank = scorer.features(grey)[0]
    rng = np.random.default_rng(seed)
    for image, ids in tqdm(by_picture.items(), desc="pictures"):
        picture = np.asarray(Image.open(folder / "train_images" / image).convert("RGB"))
        feats = scorer.features(picture[None])[0]
        some = [rows[i] for i in ids]
        shared = {
            names[0]: feats,
            names[1]: blank,
            names[2]: feats[torch.from_numpy(even(tokens))],
            names[3]: feats[torch.from_numpy(np.sort(rng.permutation(576)[:tokens]))],
        }
        for name, f in shared.items():
            for i, ok in zip(ids, scorer.right(f, some), strict=True):
                out[name][i] = ok
        for i, r in zip(ids, some, strict=True):
            kept = torch.from_numpy(oracle(r["region"], tokens))
            out[names[4]][i] = scorer.right(feats[kept], [r])[0]
    by_type: dict[str, Counter] = {}
    for r in rows:
        by_type.setdefault(r["type"], Counter())[r["answer"]] += 1
    most = {k: c.most_common(1)[0][0] for k, c in by_type.items()}
    out["majority"] = [r["answer"] == most[r["type"]] for r in rows]
    return out


def table(rows: list[dict], result: dict[str, list]) -> dict[str, dict[str, float]]:
    """Accuracy in per cent, by type and condition; the row "all" is the mean over questions."""
    kinds = sorted({r["type"] for r in rows})
    groups = {k: [i for i, r in enumerate(rows) if r["type"] == k] for k in kinds}
    groups["all"] = list(range(len(rows)))
    return {
        k: {"n": len(ids)}
        | {c: round(100 * float(np.mean([v[i] for i in ids])), 1) for c, v in result.items()}
        for k, ids in groups.items()
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", type=Path, default=Path("checkpoints/pocket-llava"))
    p.add_argument("--data", type=Path, default=Path("playground/data/eval/textvqa"))
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--limit", type=int, default=0, help="the first so many questions; 0 is all")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path, help="write the table as json")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if not 1 <= args.tokens <= 576:
        p.error(f"--tokens {args.tokens}: a picture has 576 patches, take 1 to 576")
    rows = read_set(args.data, args.limit)
    result = evaluate(Scorer(args.model, args.device), args.data, rows, args.tokens, args.seed)
    cells = table(rows, result)
    heads = list(next(iter(cells.values())))
    print("type".ljust(12) + "".join(h.rjust(12) for h in heads))
    for kind, row in cells.items():
        print(kind.ljust(12) + "".join(str(row[h]).rjust(12) for h in heads))
    if args.out:
        write_atomically(args.out, json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
