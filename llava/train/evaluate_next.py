"""How well the any-resolution pocket model answers, and whether it needs its tiles.

``python -m llava.train.evaluate_next`` prints exact-match accuracy by type of question for:

    full       every tile
    blank      a grey picture of the same size
    thumbnail  the thumbnail's 576 patches alone, no crops
    336 view   the pocket model (``--square``) on the same picture, padded to a square as LLaVA-1.5
               does, then 336 x 336
    uniform    64 / 576 of the rows (``--tokens``; 320 of 2880), evenly spread
    random     as many, at random
    oracle     as many: the crops' patches that the question asks for, then evenly spread others

Dropped rows are left out at the decoder's input and positions renumbered. ``--zero-shot`` takes the
pocket model's weights in LLaVA-NeXT's class, before any training, with ``--rope-theta`` as the base
of its rotary positions. ``--only full`` measures every tile alone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from llava.eval.files import write_atomically
from llava.mm_utils import expand2square

from .evaluate_pocket import Scorer, even, oracle, read_set, table
from .pocket_forward import vision_features
from .pocket_next import SOURCE
from .pocket_next_model import ROPE_THETA, make_next
from .pocket_next_pictures import grid_of, rows_of_squares

GREY = (122, 116, 104)  # LLaVA's padding colour


class NextScorer(Scorer):
    """The same of pictures in tiles."""

    family = LlavaNextForConditionalGeneration

    @torch.inference_mode()
    def picture(self, image: Image.Image) -> Tensor:
        """(n, width): the packed picture, by the stock processor and the stock packing."""
        inputs = self.processor(image, return_tensors="pt")
        model, pixels = self.model.model, inputs["pixel_values"][0].to(self.device)
        grid = torch.arange(576, device=self.device).expand(len(pixels), -1)
        with torch.autocast(self.device.type, torch.bfloat16):
            h = vision_features(model.vision_tower, pixels, grid)[:, 1:]
            tiles = model.multi_modal_projector(h).float()
        packed, _ = model.pack_image_features(
            [tiles], inputs["image_sizes"], "default", image_newline=model.image_newline
        )
        return packed[0]

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__(folder, device)
        self.processor = LlavaNextImageProcessorPil.from_pretrained(folder)


def evaluate(
    scorer: NextScorer, square: Scorer | None, folder: Path, rows: list[dict], tokens: int,
    seed: int, only_full: bool = False,
) -> dict[str, list]:  # fmt: skip
    """For each condition one bool for each question, in order."""
    by_picture: dict[str, list[int]] = {}
    for i, r in enumerate(rows):
        by_picture.setdefault(str(r["image"]), []).append(i)
    share, view = f"{tokens}/576", "336 view"
    names = ["full", "blank", "thumbnail", f"uniform {share}", f"random {share}", f"oracle {share}"]
    names = names[:1] if only_full else names
    out: dict[str, list] = {n: [False] * len(rows) for n in names}
    out |= {view: [False] * len(rows)} if square else {}
    rng = np.random.default_rng(seed)
    for image, ids in tqdm(by_picture.items(), desc="pictures"):
        picture = Image.open(folder / "train_images" / image).convert("RGB")
        feats, grid = scorer.picture(picture), grid_of(picture.size)
        n, some = len(feats), [rows[i] for i in ids]
        for i, ok in zip(ids, scorer.right(feats, some), strict=True):
            out[names[0]][i] = ok
        if only_full:
            continue
        kept = tokens * grid.tiles
        shown = {
            names[1]: scorer.picture(Image.new("RGB", picture.size, GREY)),
            names[2]: feats[:576],
            names[3]: feats[torch.from_numpy(even(kept, n))],
            names[4]: feats[torch.from_numpy(np.sort(rng.permutation(n)[:kept]))],
        }
        for name, f in shown.items():
            for i, ok in zip(ids, scorer.right(f, some), strict=True):
                out[name][i] = ok
        for i, r in zip(ids, some, strict=True):
            wanted = rows_of_squares(r["region"], r["grid"][1], grid)
            chosen = torch.from_numpy(oracle(wanted, kept, n))
            out[names[5]][i] = scorer.right(feats[chosen], [r])[0]
        if square:
            small = expand2square(picture, GREY).resize((336, 336), Image.Resampling.BICUBIC)
            view_feats = square.features(np.asarray(small)[None])[0]
            for i, ok in zip(ids, square.right(view_feats, some), strict=True):
                out[view][i] = ok
    by_type: dict[str, Counter] = {}
    for r in rows:
        by_type.setdefault(r["type"], Counter())[r["answer"]] += 1
    most = {k: c.most_common(1)[0][0] for k, c in by_type.items()}
    out["majority"] = [r["answer"] == most[r["type"]] for r in rows]
    return out


def by_tiles(
    rows: list[dict], folder: Path, result: dict[str, list]
) -> dict[str, dict[str, float]]:
    """Accuracy in per cent, by the number of tiles."""
    tiles = {}
    for r in rows:
        with Image.open(folder / "train_images" / str(r["image"])) as picture:
            tiles[r["image"]] = f"{grid_of(picture.size).tiles} tiles"
    return table([{**r, "type": tiles[r["image"]]} for r in rows], result)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", type=Path, default=Path("checkpoints/pocket-llava-next"))
    p.add_argument("--square", type=Path, default=SOURCE)
    p.add_argument("--zero-shot", action="store_true")
    p.add_argument("--rope-theta", type=float, default=ROPE_THETA, help="of --zero-shot")
    p.add_argument("--only", choices=("full",), help="leave out all other conditions")
    p.add_argument("--data", type=Path, default=Path("playground/data/eval_anyres/textvqa"))
    p.add_argument("--tokens", type=int, default=64, help="of 576, a share for any number of tiles")
    p.add_argument("--limit", type=int, default=0, help="the first so many questions; 0 is all")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path, help="write the tables as json")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if not 1 <= args.tokens <= 576:
        p.error(f"--tokens {args.tokens}: a share of 576, take 1 to 576")
    scorer = NextScorer(args.model, args.device)
    if args.zero_shot:
        scorer.model = make_next(args.square, args.rope_theta).eval().to(scorer.device)
    rows = read_set(args.data, args.limit)
    square = None if args.only else Scorer(args.square, args.device)
    only = args.only is not None
    result = evaluate(scorer, square, args.data, rows, args.tokens, args.seed, only)
    cells, tiles = table(rows, result), by_tiles(rows, args.data, result)
    for part in (cells, tiles):
        heads = list(next(iter(part.values())))
        print("type".ljust(12) + "".join(h.rjust(16) for h in heads))
        for kind, row in part.items():
            print(kind.ljust(12) + "".join(str(row[h]).rjust(16) for h in heads))
    if args.out:
        write_atomically(args.out, json.dumps({"types": cells, "tiles": tiles}, indent=1) + "\n")


if __name__ == "__main__":
    main()
