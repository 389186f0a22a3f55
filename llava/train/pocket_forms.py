"""How well the pocket model answers in each benchmark's form, by exact match, skill by skill.

``python -m llava.train.pocket_forms --pictures 40`` asks about pictures of the sample sets' pool,
which no training has seen: ``full``, a grey picture (``blank``), the share of the form's most
frequent answer to each skill (``majority``) and, of lettered options, one over their number
(``chance``). It is the quick look during training; the benchmarks' own scores are those of
``python -m llava.eval.run_benchmark``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from llava.eval.files import write_atomically
from playground.pocket.asking import Asked
from playground.pocket.pool import POOL, pixels_of, rng_of, scene_of
from playground.pocket.questions import SUFFIX, all_questions
from playground.pocket.sets import FORMS, vizwiz

from .evaluate_pocket import Scorer
from .pocket_lessons import choose

Row = dict[str, object]


def questions(form: str, picture: int, each: int) -> list[Asked]:
    """Up to ``each`` questions of a pool picture in a form, types and answers balanced."""
    scene, rng = scene_of(picture), rng_of(f"evaluate {form}", picture)
    if form == "textvqa":
        line = "\nReference OCR token: \n"
        found = [
            Asked(q.type, q.text + line + SUFFIX, q.answer, q.region, q.evidence, q.text)
            for q in all_questions(scene, rng)
        ]
    else:
        found = FORMS[form](scene, rng)
    return choose(found, each, rng)


def measure(scorer: Scorer, forms: list[str], pictures: int, each: int) -> list[Row]:
    """One row a question: form, type, answer, whether full and blank are right."""
    grey = np.full((1, 336, 336, 3), (122, 116, 104), np.uint8)  # LLaVA's padding colour
    blank = scorer.features(grey)[0]
    rows: list[Row] = []
    for i in tqdm(range(pictures), desc="pictures"):
        at = POOL - 1 - i
        feats = scorer.features(pixels_of(at)[None])[0]
        asked = [(form, q) for form in forms for q in questions(form, at, each)]
        said = [{"prompt": q.prompt, "answer": q.answer, "picture": q.picture} for _, q in asked]
        right = {"full": scorer.right(feats, said), "blank": scorer.right(blank, said)}
        if "vizwiz" in forms:
            blurred = [vizwiz.blurred(q) for form, q in asked if form == "vizwiz"][:1]
            feats = scorer.features(vizwiz.spoil(pixels_of(at))[None])[0]
            said = [{"prompt": q.prompt, "answer": q.answer, "picture": True} for q in blurred]
            right["full"] += scorer.right(feats, said)
            right["blank"] += scorer.right(blank, said)
            asked += [("vizwiz", q) for q in blurred]
        for (form, q), full, none in zip(asked, right["full"], right["blank"], strict=True):
            rows.append(
                {"form": form, "type": q.type, "answer": q.answer, "options": len(q.options)}
                | {"full": full, "blank": none}
            )
    return rows


def table(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Per cent by form, and by "form/type"."""
    groups: dict[str, list[Row]] = {}
    for r in rows:
        groups.setdefault(str(r["form"]), []).append(r)
        groups.setdefault(f"{r['form']}/{r['type']}", []).append(r)
    out = {}
    for name, some in sorted(groups.items()):
        most: dict[str, Counter[str]] = {}
        for r in some:
            most.setdefault(str(r["type"]), Counter())[str(r["answer"])] += 1
        lucky = sum(c.most_common(1)[0][1] for c in most.values())
        chance = [1 / int(str(r["options"])) for r in some if r["options"]]
        out[name] = {
            "n": len(some),
            "full": 100 * float(np.mean([bool(r["full"]) for r in some])),
            "blank": 100 * float(np.mean([bool(r["blank"]) for r in some])),
            "majority": 100 * lucky / len(some),
            "chance": 100 * float(np.mean(chance)) if chance else float("nan"),
        }
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", type=Path, default=Path("checkpoints/pocket-llava"))
    p.add_argument("--pictures", type=int, default=40)
    p.add_argument("--each", type=int, default=6, help="questions of each form for a picture")
    p.add_argument("--forms", default=",".join(["textvqa", *FORMS]))
    p.add_argument("--types", action="store_true", help="a line for each type, too")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path, help="write the table as json")
    args = p.parse_args()
    if not 1 <= args.pictures <= POOL:
        p.error(f"--pictures {args.pictures}: the pool has {POOL}, take 1 to {POOL}")
    rows = measure(Scorer(args.model, args.device), args.forms.split(","), args.pictures, args.each)
    cells = table(rows)
    heads = list(next(iter(cells.values())))
    print("form".ljust(34) + "".join(h.rjust(10) for h in heads))
    for name, row in cells.items():
        if args.types or "/" not in name:
            print(name.ljust(34) + "".join(f"{row[h]:10.1f}" for h in heads))
    if args.out:
        write_atomically(args.out, json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
