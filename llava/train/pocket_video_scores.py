"""What the pocket video model answers, by type of question, on clips that no training has seen.

    python -m llava.train.pocket_video_scores --clips 60

Beside the full model the same on grey frames, and each type's most frequent answer here.  As in
`evaluate_pocket`: greedy decoding gives the answer exactly when, fed the answer, the model's first
choice is right at each of its tokens, so one pass over a clip scores all its questions.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration

from llava.eval.files import write_atomically
from llava.eval.pictures import GREY
from playground.pocket.asking import Asked
from playground.pocket.clip_questions import CLIP_TYPES, clip_questions
from playground.pocket.clips import make_clip, render_clip

from .pocket_forward import decoder_states
from .pocket_model import SYSTEM
from .pocket_video_loss import PocketVideo

SEED = 40_000  # neither of the sample sets' clips nor of training's


class ClipScorer:
    """Tells which questions about a clip are answered right."""

    def __init__(self, folder: Path) -> None:
        self.tok = AutoTokenizer.from_pretrained(folder)
        model = VideoLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model = PocketVideo(model.eval(), self.tok)
        self.prefix = torch.tensor(self.tok(SYSTEM + " USER: ").input_ids)

    @torch.inference_mode()
    def right(self, frames: np.ndarray, questions: list[Asked]) -> list[bool]:
        """frames (8, 224, 224, 3) uint8 -> which answers are right in every token."""
        ids: list[int] = []
        target: list[int] = []
        pos: list[int] = []
        seg: list[int] = []
        for i, q in enumerate(questions):
            ask = self.tok(f"\n{q.prompt} ASSISTANT:", add_special_tokens=False).input_ids
            said = self.tok(f" {q.answer}", add_special_tokens=False).input_ids
            said = [*said, self.tok.eos_token_id]
            ids += ask + said
            target += [-1] * (len(ask) - 1) + said + [-1]
            pos += range(len(ask) + len(said))
            seg += [i] * (len(ask) + len(said))
        lm = self.model.llava.model.language_model
        t = torch.tensor([ids, target, pos, seg])
        grid = torch.arange((frames.shape[1] // 14) ** 2)[None]
        with torch.autocast("cpu", torch.bfloat16):
            image = self.model.features(torch.from_numpy(frames)[None], grid)[0].float()
            x = torch.cat([lm.embed_tokens(self.prefix), image, lm.embed_tokens(t[0])])[None]
            shared = len(self.prefix) + len(image)
            where = torch.cat([torch.arange(shared), shared + t[2]])[None]
            states = decoder_states(lm, x, where, t[3][None], shared)
            best = self.model.llava.lm_head(states)[0].float().argmax(-1)
        bad = set(t[3][(best != t[1]) & (t[1] >= 0)].tolist())
        return [i not in bad for i in range(len(questions))]


def evaluate(scorer: ClipScorer, clips: int, seed: int) -> dict[str, dict[str, float]]:
    """Per cent right by type: full, grey frames, the type's most frequent answer."""
    found: dict[str, list[tuple[str, bool, bool]]] = defaultdict(list)
    for i in tqdm(range(clips), desc="clips"):
        clip = make_clip(seed, i)
        questions = clip_questions(clip, np.random.default_rng([seed, i]))
        frames = render_clip(clip)
        full = scorer.right(frames, questions)
        blank = scorer.right(np.full_like(frames, GREY[0]), questions)
        for q, shown, grey in zip(questions, full, blank, strict=True):
            found[q.type].append((q.answer, shown, grey))
    return {
        kind: {
            "n": len(rows),
            "full": round(100 * sum(r[1] for r in rows) / len(rows), 1),
            "grey frames": round(100 * sum(r[2] for r in rows) / len(rows), 1),
            "majority": round(
                100 * Counter(r[0] for r in rows).most_common(1)[0][1] / len(rows), 1
            ),
        }
        for kind in CLIP_TYPES
        if (rows := found.get(kind))
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", type=Path, default=Path("checkpoints/pocket-video-llava"))
    p.add_argument("--clips", type=int, default=60)
    p.add_argument("--seed", type=int, default=SEED)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, help="write the table as json")
    args = p.parse_args()
    if not 0 <= args.seed < 1_000_000:
        p.error(f"--seed {args.seed}: seeds from 1,000,000 on are training's; take a smaller one")
    torch.set_num_threads(args.threads)
    table = evaluate(ClipScorer(args.model), args.clips, args.seed)
    print("| type | " + " | ".join(next(iter(table.values()))) + " |")
    for kind, row in table.items():
        print(f"| {kind} | " + " | ".join(str(x) for x in row.values()) + " |")
    if args.out:
        write_atomically(args.out, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
