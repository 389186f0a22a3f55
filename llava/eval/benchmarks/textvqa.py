"""TextVQA (Singh et al., CVPR 2019), validation split, in the files that LLaVA uses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import (
    Benchmark,
    BenchmarkFiles,
    KnownRegions,
    Scores,
    require_files,
)
from llava.eval.errors import EvalError
from llava.eval.eval_textvqa import annotation_of, load_annotations, question_of, score_answers
from llava.eval.labels import by_type, in_words
from llava.eval.samples import Sample


class TextVQA(Benchmark):
    """Accuracy over ten human answers; see ``llava.eval.m4c_evaluator``."""

    name = "textvqa"
    title = "TextVQA"
    default_data = "playground/data/eval/textvqa"
    bundled_limit = 480

    def files(self, data: str | Path) -> BenchmarkFiles:
        folder = Path(data)
        files = BenchmarkFiles(
            questions=folder / "llava_textvqa_val_v051_ocr.jsonl",
            images=folder / "train_images",
            annotations=folder / "TextVQA_0.5.1_val.json",
            types=folder / "regions.json",
            split="val",
        )
        require_files(
            self.title,
            {
                "questions": files.questions,
                "images": files.images,
                "annotations": files.answers,
            },
            "docs/evaluation.md says where to get the files; DATA or --data says where they are",
        )
        return files

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        annotations = load_annotations(files.answers)
        for sample in samples:
            annotation_of({"question_id": sample.question_id, "prompt": sample.prompt}, annotations)

    def known_regions(self, files: BenchmarkFiles) -> KnownRegions:
        return read_regions(files.types), question_of

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        annotations = load_annotations(files.answers)
        per_sample = score_answers(rows, annotations)
        types = question_types(files.types)
        kinds = [types.get((str(row["question_id"]), question_of(row["prompt"]))) for row in rows]
        score = 100 * sum(per_sample) / len(per_sample)
        return Scores(
            score,
            per_sample,
            by_type(per_sample, kinds),
            kinds=[() if kind is None else (kind,) for kind in kinds],
            right=[in_words(annotation_of(row, annotations)["answers"]) for row in rows],
        )


def question_types(path: Path | None) -> dict[tuple[str, str], str]:
    """(image id, lower-cased question) -> type, from the sample data's sidecar, if it is there."""
    return {key: entry["type"] for key, entry in read_regions(path).items()}


def read_regions(path: Path | None) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The sample data's sidecar, a list of ``{"image_id", "question", "type", "region": [patch
    ids]}``, by (image id, lower-cased question); empty where there is none."""
    if path is None or not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_bytes())
        return {(str(e["image_id"]), e["question"].lower()): e for e in entries if e["type"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EvalError(f"{path} does not sort questions by type ({error!r}); remove it") from None
