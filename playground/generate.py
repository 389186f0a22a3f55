"""Makes the sample sets: ``python -m playground.generate NAME --out playground/data/eval/NAME``.

With ``--anyres`` those of any-resolution pictures, below ``playground/data/eval_anyres``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playground.pocket import anyres
from playground.pocket.formats import check, write_textvqa
from playground.pocket.sets import SETS

SAMPLE_SEED = 20260  # training uses seeds from 1,000,000 on
ROOT, ANYRES = Path("playground/data/eval"), Path("playground/data/eval_anyres")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("name", nargs="?", default="textvqa", choices=("textvqa", *SETS))
    p.add_argument("--anyres", action="store_true", help="pictures of any resolution")
    p.add_argument("--out", type=Path, help=f"default: {ROOT}/NAME")
    p.add_argument("--questions", type=int, default=2400, help="of textvqa")
    p.add_argument("--per-picture", type=int, default=6, help="of textvqa")
    p.add_argument("--seed", type=int, default=SAMPLE_SEED, help="of textvqa")
    p.add_argument("--check", action="store_true", help="compare with the checksums, write nothing")
    args = p.parse_args()
    if args.seed >= 1_000_000:
        p.error(f"--seed {args.seed}: seeds from 1,000,000 on are training's; take a smaller one")
    if args.questions < 1 or args.per_picture < 1:
        p.error("--questions and --per-picture must be at least 1")
    if args.anyres and args.name not in anyres.SETS:
        p.error(f"--anyres: there is no {args.name}, take one of {', '.join(anyres.SETS)}")
    out = args.out or (ANYRES if args.anyres else ROOT) / args.name
    if args.check:
        bad = check(out)
        raise SystemExit(f"{out}: differ from SHA256SUMS: {', '.join(bad)}" if bad else 0)
    if args.anyres:
        shutil.rmtree(out / "train_images", ignore_errors=True)
        print(f"{args.name}: {anyres.SETS[args.name](out)} questions")
        return
    if args.name != "textvqa":
        print(f"{args.name}: {SETS[args.name](out)} questions")
        return
    shutil.rmtree(out / "train_images", ignore_errors=True)
    counts = write_textvqa(out, args.questions, args.per_picture, args.seed)
    for name, n in counts.items():
        print(f"{name:12} {n:5}")


if __name__ == "__main__":
    main()
