"""Does coverage help VisionDrop? `visiondrop_div` on the bundled model, with paired intervals.

    python -m benchmarks.visiondrop_div                       # docs/results/visiondrop_div.*
    python -m benchmarks.visiondrop_div --half development    # what the defaults were chosen by

The sample's pictures are cut in two by a hash of their names. Form and defaults of the method were
chosen on the development half; the held-out half was looked at once, with them fixed.

No method here looks at the question, so a picture's prefix is reduced once and its questions go on
from copies of its cache (a test: the answers are those of one prompt a question). Every cell is
stored under --out when it is done, with what it depends on; the same command goes on with the first
that is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.answering import LoadedModel
from llava.eval.benchmarks.textvqa import TextVQA, question_types
from llava.eval.errors import EXIT_OK, run_main
from llava.eval.eval_textvqa import question_of
from llava.eval.files import write_atomically
from llava.eval.intervals import bootstrap_intervals
from llava.eval.loading import ModelChoice, load_model
from llava.eval.preparing import QuestionDataset
from llava.eval.samples import read_questions
from llava.eval.settings import file_digest, fingerprint
from llava.eval.table import markdown
from visiondrop import Full, Random, Reducer, TowerCache, Uniform, VisionDrop
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.scope import Scope
from visiondrop.methods.visiondrop_div import VisionDropDiv
from visiondrop.prefix import left_pad

HALVES = ("development", "held-out")
TOKENS = (192, 128, 64, 32)
ANSWERED = ("color", "letter", "number", "place_color", "place_shape", "shape", "word")
"""Types in which the full model beats a blank picture by 20 points, see
docs/results/pocket_textvqa.md; the others are counts and existence."""
PICTURES, STEPS, CACHE_BYTES = 12, 6, 2**32
PLAIN, CORRECTED, OURS = "visiondrop", "visiondrop, causal=expectation", "visiondrop_div"


def half_of(image: str) -> str:
    """Which half of the pictures one belongs to."""
    return HALVES[hashlib.sha256(image.encode()).digest()[0] & 1]


def arms(tokens: int, layers: int, half: str) -> dict[str, Reducer]:
    """What is compared at a budget."""
    plain = VisionDrop.from_average(tokens, num_layers=layers)
    corrected = VisionDrop.from_average(tokens, num_layers=layers, causal="expectation")

    def ours(**options: Any) -> VisionDropDiv:
        return VisionDropDiv.from_average(tokens, num_layers=layers, **options)

    out: dict[str, Reducer] = {PLAIN: plain, CORRECTED: corrected, OURS: ours()}
    if half == HALVES[0]:
        for options in ({"alpha": 0.25}, {"alpha": 1.0}, {"radius": 0.0}, {"radius": 3.0}):
            ((name, value),) = options.items()
            out[f"{OURS}, {name}={value:g}"] = ours(**options)
        return out
    inner = VisionDrop(llm=corrected.llm, causal="expectation")
    out[f"{OURS}, at the encoder only"] = VisionDropDiv(encoder=plain.encoder) + inner
    out[f"{OURS}, in the LLM only"] = VisionDrop(encoder=plain.encoder) + VisionDropDiv(
        llm=plain.llm
    )
    out["divprune"], out["scope"] = DivPrune(tokens), Scope(tokens)
    out["uniform"], out["random"] = Uniform(tokens), Random(tokens)
    return out


class Questions:
    """The questions of one half, picture by picture, and their scores.

    Args:
        limit: only so many pictures.
    """

    def __init__(self, loaded: LoadedModel, data: Path, half: str, limit: int | None = None):
        self.loaded, self.benchmark = loaded, TextVQA()
        self.files = self.benchmark.files(data)
        samples = [s for s in read_questions(self.files.questions) if half_of(str(s.image)) == half]
        names = list(dict.fromkeys(str(s.image) for s in samples))[:limit]
        place = {name: i for i, name in enumerate(names)}
        self.samples = sorted(
            (s for s in samples if str(s.image) in place), key=lambda s: place[str(s.image)]
        )
        self.pictures = [str(s.image) for s in self.samples]
        types = question_types(self.files.types)
        self.kinds = [types[str(s.question_id), question_of(s.prompt)] for s in self.samples]
        self.towers = TowerCache(CACHE_BYTES)
        self.dataset = QuestionDataset(
            self.samples,
            self.files.images,
            loaded.tokenizer,
            loaded.image_processor,
            loaded.model.config,
            "vicuna_v1",
            "pad",
        )

    def score(self, texts: Sequence[str]) -> tuple[list[float], dict[str, tuple[float, int]]]:
        """TextVQA accuracy of each answer, and by question type (0 to 100) with counts."""
        rows = [
            {"question_id": s.question_id, "prompt": s.prompt, "text": text}
            for s, text in zip(self.samples, texts, strict=True)
        ]
        scores = self.benchmark.score(rows, self.files)
        return list(scores.per_sample), dict(scores.types)

    @torch.inference_mode()
    def answer(self, method: Reducer) -> tuple[list[str], float]:
        """Greedy answers to all questions, and the true mean of visual tokens."""
        names = list(dict.fromkeys(self.pictures))
        texts: list[str] = []
        with method(self.loaded.model, tower_cache=self.towers) as trace:
            for first in range(0, len(names), PICTURES):
                part = names[first : first + PICTURES]
                trace.set_keys(part)
                trace.set_pictures(part)
                texts += self._answer_part(part)
            return texts, trace.mean_tokens

    def _answer_part(self, names: list[str]) -> list[str]:
        model, config = self.loaded.model, self.loaded.model.config
        prepared = [self.dataset[i] for i, name in enumerate(self.pictures) if name in names]
        owner = [names.index(self.pictures[p.index]) for p in prepared]
        cuts = [int((p.input_ids == IMAGE_TOKEN_INDEX).nonzero()) for p in prepared]
        ids = prepared[0].input_ids
        patches = ids.new_full((config.image_seq_length,), config.image_token_id)
        prefix = torch.cat([ids[: cuts[0]], patches]).expand(len(names), -1)
        ends = [p.input_ids[cut + 1 :] for p, cut in zip(prepared, cuts, strict=True)]
        pixels = [prepared[owner.index(i)].image for i in range(len(names))]
        assert all(image is not None for image in pixels)
        cache = DynamicCache(config=config.text_config)
        device = model.device
        model(
            input_ids=prefix.to(device),
            pixel_values=torch.stack(pixels).to(device, model.dtype),  # type: ignore[arg-type]
            attention_mask=torch.ones_like(prefix).to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_select_indices(torch.tensor(owner, device=device))
        new, mask = left_pad(ends, self.loaded.pad_id)
        mask = torch.cat([mask.new_ones(len(owner), prefix.shape[1]), mask], 1)
        return self._decode(cache, new.to(device), mask.to(device))

    def _decode(self, cache: DynamicCache, ids: Tensor, mask: Tensor) -> list[str]:
        """Go on greedily from `cache` after `ids` [B, T]; `mask` covers both."""
        eos = self.loaded.tokenizer.eos_token_id
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        out: list[Tensor] = []
        for _ in range(STEPS):
            logits = self.loaded.model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            token = logits[:, -1].argmax(-1).masked_fill(done, eos)
            out.append(token)
            done |= token == eos
            if done.all():
                break
            ids = token[:, None]
            mask = torch.cat([mask, mask.new_ones(len(ids), 1)], 1)
        sequences = torch.stack(out, 1)
        texts = self.loaded.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        return [text.strip() for text in texts]


def cell(questions: Questions, method: Reducer, path: Path, base: Mapping[str, Any]) -> dict:
    """One arm's answers and scores, from `path` where they are there under the same settings."""
    settings = {**base, "method": json.loads(json.dumps(method.to_dict()))}
    if path.is_file() and (stored := json.loads(path.read_bytes()))["settings"] == settings:
        return dict(stored)
    began = time.process_time()
    texts, mean = questions.answer(method)
    scores, types = questions.score(texts)
    out = {"settings": settings, "mean_tokens": mean, "scores": scores, "texts": texts}
    out["types"] = {kind: {"score": score, "n": n} for kind, (score, n) in types.items()}
    write_atomically(path, json.dumps(out) + "\n")
    print(f"{path.stem}: {100 * np.mean(scores):.1f}, {time.process_time() - began:.0f} s of CPU")
    return out


def file_name(arm: str, tokens: int) -> str:
    return f"{re.sub('[^a-z0-9_.=]+', '-', arm.lower())}-{tokens}.json"


def answered(types: Mapping[str, Mapping[str, float]]) -> float:
    """Score over the types that the model answers by the picture."""
    kinds = [types[kind] for kind in ANSWERED if kind in types]
    total = sum(kind["n"] for kind in kinds)
    return sum(kind["score"] * kind["n"] for kind in kinds) / total if total else float("nan")


def compare(
    cells: Mapping[str, dict], pictures: Sequence[str], kinds: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of one budget: each arm's scores, and its differences from the two VisionDrops with
    intervals, in points; from the plain one also for each question type.
    """
    scores = 100 * np.array([found["scores"] for found in cells.values()]).T
    names, rows = list(cells), []
    intervals = {
        reference: bootstrap_intervals(scores - scores[:, [names.index(reference)]], pictures)
        for reference in (PLAIN, CORRECTED)
        if reference in cells
    }
    by_kind = {}
    for kind in sorted(set(kinds)) if PLAIN in cells else ():
        some = [i for i, other in enumerate(kinds) if other == kind]
        difference = scores[some] - scores[some][:, [names.index(PLAIN)]]
        by_kind[kind] = bootstrap_intervals(difference, [pictures[i] for i in some])
    for i, (name, found) in enumerate(cells.items()):
        row = {
            "method": name,
            "tokens": found["mean_tokens"],
            "score": float(scores[:, i].mean()),
            "answered": answered(found["types"]),
            "types": found["types"],
            "config": found["settings"]["method"],
        }
        for reference, found_intervals in intervals.items():
            if name != reference:
                row[f"minus {reference}"] = found_intervals[i].to_dict()
        if name != PLAIN:
            row["types minus visiondrop"] = {k: v[i].to_dict() for k, v in by_kind.items()}
        rows.append(row)
    return rows


def show(row: Mapping[str, Any], reference: str) -> str:
    """A difference and its interval; bold where that leaves out 0."""
    found = row.get(f"minus {reference}")
    if found is None:
        return "-"
    text = f"{found['difference']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"
    return f"**{text}**" if found["low"] > 0 or found["high"] < 0 else text


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As Markdown."""
    kinds = sorted({kind for row in rows for kind in row["types"]})
    head = ["method", "tokens", "all", f"minus {PLAIN}", "minus corrected", "answered", *kinds]
    lines = [
        [
            row["method"],
            f"{row['tokens']:g}",
            f"{row['score']:.1f}",
            show(row, PLAIN),
            show(row, CORRECTED),
            f"{row['answered']:.1f}",
            *(
                f"{row['types'][kind]['score']:.0f}" if kind in row["types"] else "-"
                for kind in kinds
            ),
        ]
        for row in rows
    ]
    return markdown(head, lines)


def note(questions: Questions, half: str, dtype: str, command: str) -> str:
    n, pictures = len(questions.samples), len(set(questions.pictures))
    return (
        f"TextVQA accuracy in percent, bundled model, {dtype}: {n} generated questions on the "
        f"{pictures} pictures of the {half} half. tokens: true mean of visual tokens over decoder "
        "layers. minus ...: paired difference in points with its 95 % interval (bootstrap over "
        "pictures), bold where it leaves out 0; corrected: VisionDrop with "
        '`causal="expectation"`. answered: without counts and existence, which the full model '
        "hardly or not answers. `random` draws once per picture (one seed). Made by "
        f"`{command}`.\n"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="VisionDrop-Div on the bundled model.")
    parser.add_argument("--half", choices=HALVES, default=HALVES[1])
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--limit", type=int, help="only so many pictures")
    parser.add_argument("--model-path", default="checkpoints/pocket-llava")
    parser.add_argument("--data", type=Path, default=Path(TextVQA.default_data))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("outputs/visiondrop_div"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    args = parser.parse_args(argv)
    choice = ModelChoice(args.model_path, dtype=args.dtype)
    loaded = load_model(choice)
    questions = Questions(loaded, args.data, args.half, args.limit)
    base = {
        "model": fingerprint(choice.path),
        "questions": file_digest(questions.files.questions),
        "pictures": len(set(questions.pictures)),
        "half": args.half,
        "dtype": choice.dtype_name,
    }
    folder, layers = args.out / args.half, loaded.model.config.text_config.num_hidden_layers
    full = {"full": cell(questions, Full(), folder / "full.json", base)}
    rows = compare(full, questions.pictures, questions.kinds)
    for tokens in sorted(map(int, args.tokens.split(",")), reverse=True):
        cells = {
            name: cell(questions, method, folder / file_name(name, tokens), base)
            for name, method in arms(tokens, layers, args.half).items()
        }
        rows += compare(cells, questions.pictures, questions.kinds)
    stem = "visiondrop_div" if args.half == HALVES[1] else "visiondrop_div_development"
    command = " ".join(["python -m benchmarks.visiondrop_div", *(argv or sys.argv[1:])])
    text = f"{table(rows)}\n{note(questions, args.half, choice.dtype_name, command)}"
    write_atomically(args.results / f"{stem}.md", text)
    result = json.dumps({"settings": base, "rows": rows}, indent=1)
    write_atomically(args.results / f"{stem}.json", result + "\n")
    print(text)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
