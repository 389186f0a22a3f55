"""LLaVA's question files, made of the official files where LLaVA's own are not at hand.

Each function takes the benchmark's folder and returns the question file's bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError
from llava.eval.eval_mme import ALL_TASKS, task_folder
from llava.eval.eval_pope import label_file
from llava.eval.eval_science_qa import OPTIONS, load_problems, load_split
from llava.eval.eval_seed import LETTERS
from llava.eval.eval_vqav2 import SHORT_ANSWER, read_official_questions
from llava.eval.files import json_line
from llava.eval.labels import read_json
from llava.eval.samples import INSTRUCTIONS, REFERENCE, check_image_name, read_jsonl

ROSETTA = "TextVQA_Rosetta_OCR_v0.2_val.json"
POPE_CATEGORIES = ("adversarial", "popular", "random")  # in the order of LLaVA's file
_LETTER = INSTRUCTIONS[1]
_YES_OR_NO = "Please answer yes or no."
_PICTURES = (".jpg", ".jpeg", ".png")


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(map(json_line, rows)).encode()


def textvqa(folder: Path) -> bytes:
    """Questions of the annotation file with the OCR tokens of Rosetta's file, by picture."""
    path = folder / "TextVQA_0.5.1_val.json"
    tokens = {
        str(entry["image_id"]): entry["ocr_tokens"]
        for entry in _data(folder / ROSETTA, ("image_id", "ocr_tokens"))
    }
    rows = []
    for number, entry in enumerate(_data(path, ("image_id", "question")), start=1):
        name = str(entry["image_id"])
        check_image_name(f"{name}.jpg", f"{path}, entry {number}")
        if name not in tokens:
            raise EvalError(
                f"{folder / ROSETTA} has no OCR tokens of picture {name!r} ({path}, entry {number}"
                "); do the two files belong together?"
            )
        text = f"{entry['question']}\n{REFERENCE} {', '.join(tokens[name])}\n{SHORT_ANSWER}"
        rows.append(
            {"question_id": name, "image": f"{name}.jpg", "text": text, "category": "default"}
        )
    return _lines(rows)


def _data(path: Path, needed: tuple[str, ...]) -> list[Mapping[str, Any]]:
    """The entries of one of TextVQA's files, each with the keys that are needed."""
    content = read_json(path, "one of TextVQA's files")
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise EvalError(f'{path} is not one of TextVQA\'s files; expected {{"data": [...]}}')
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or any(key not in entry for key in needed):
            raise EvalError(
                f"{path}, entry {number}: expected {', '.join(needed)}, got {str(entry)[:80]!r}"
            )
    return entries


def vqav2_test2015(folder: Path) -> bytes:
    """All questions of test2015, which the server wants answered."""
    samples = read_official_questions(folder / "v2_OpenEnded_mscoco_test2015_questions.json")
    return _lines(
        {"question_id": s.question_id, "image": s.image, "text": s.prompt, "category": "default"}
        for s in samples
    )


def pope(folder: Path) -> bytes:
    """The three label files' questions, one category after the other, numbered through."""
    rows: list[dict[str, Any]] = []
    for category in POPE_CATEGORIES:
        path = label_file(folder / "coco", category)
        for number, row in read_jsonl(path):
            text, image = row.get("text"), row.get("image")
            if not isinstance(text, str) or not isinstance(image, str):
                raise EvalError(f'{path}, line {number}: no "text" and "image"; fetch it again')
            check_image_name(image, f"{path}, line {number}")
            question = text.replace("imange", "image")
            rows.append(
                {
                    "question_id": len(rows),
                    "image": image,
                    "text": f"{question}\n{SHORT_ANSWER}",
                    "category": category,
                }
            )
    return _lines(rows)


def mme(folder: Path) -> bytes:
    """Every question of the tasks' text files, whose own last sentence makes way for LLaVA's."""
    root = folder / "MME_Benchmark_release_version"
    rows = []
    for task in ALL_TASKS:
        pictures = {
            path.stem: path.relative_to(root).as_posix()
            for path in sorted((root / task).rglob("*"))
            if path.suffix.lower() in _PICTURES
        }
        for file in sorted(task_folder(root, task).glob("*.txt")):
            if file.stem not in pictures:
                raise EvalError(f"{file}: no picture {file.stem}{{.jpg,.png}} in {root / task}")
            for line in file.read_text(encoding="utf-8-sig").splitlines():
                question, tab, _ = line.strip().rpartition("\t")
                if not tab:
                    continue
                name = pictures[file.stem]
                text = f"{question.replace(_YES_OR_NO, '').strip()}\n{SHORT_ANSWER}"
                rows.append({"question_id": name, "image": name, "text": text, "category": task})
    if not rows:
        raise EvalError(f"no questions (<task>/*.txt) in {root}; unpack MME's archive there")
    return _lines(rows)


def scienceqa(folder: Path) -> bytes:
    """The test split's problems: hint, question and lettered choices."""
    problems = load_problems(folder / "problems.json")
    entries = []
    for name in load_split(folder / "pid_splits.json"):
        if name not in problems:
            raise EvalError(f"pid_splits.json names {name!r}, which problems.json has not")
        problem = problems[name]
        hint = str(problem.get("hint") or "").strip()
        lines = [f"Context: {hint}"] if hint else []
        lines.append(str(problem.get("question", "")))
        lines += [f"{a}. {b}" for a, b in zip(OPTIONS, problem["choices"])]
        image = problem.get("image")
        entry: dict[str, Any] = {"id": name}
        if image:
            check_image_name(f"{name}/{image}", f"problems.json, problem {name!r}")
            entry["image"] = f"{name}/{image}"
            lines.insert(0, "<image>")
        entry["conversations"] = [
            {"from": "human", "value": "\n".join(lines)},
            {"from": "gpt", "value": f"The answer is {OPTIONS[problem['answer']]}."},
        ]
        entries.append(entry)
    return json.dumps(entries, ensure_ascii=False).encode()


def seed(folder: Path) -> bytes:
    """The questions about pictures of ``SEED-Bench.json``."""
    path = folder / "SEED-Bench.json"
    content = read_json(path, "SEED-Bench.json")
    entries = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise EvalError(f'{path} is not SEED-Bench.json; expected {{"questions": [...]}}')
    rows = []
    for number, entry in enumerate(entries, start=1):
        try:
            if entry["data_type"] != "image":
                continue
            image = f"SEED-Bench-image/{entry['data_id']}"
            choices = [f"{a}. {entry[f'choice_{a.lower()}']}" for a in LETTERS]
            text = "\n".join([entry["question"], *choices, _LETTER])
            row = {"question_id": entry["question_id"], "image": image, "text": text}
        except (KeyError, TypeError) as error:
            raise EvalError(f"{path}, question {number}: {error!r} is missing") from None
        check_image_name(image, f"{path}, question {number}")
        rows.append({**row, "category": "image"})
    return _lines(rows)


def mmvet(folder: Path) -> bytes:
    """The questions of ``mm-vet.json`` as they are; "v1_0" is question 0."""
    path = folder / "mm-vet.json"
    content = read_json(path, "mm-vet.json")
    if not isinstance(content, dict) or not content:
        raise EvalError(f'{path} is not mm-vet.json; expected {{"v1_0": {{...}}, ...}}')
    rows = []
    for name, entry in content.items():
        try:
            number, image = int(name.removeprefix("v1_")), entry["imagename"]
            rows.append({"question_id": number, "image": image, "text": entry["question"]})
        except (KeyError, TypeError, ValueError) as error:
            raise EvalError(
                f'{path}, {name!r}: expected "v1_<number>" with "imagename" and "question" '
                f"({error!r})"
            ) from None
        check_image_name(image, f"{path}, {name!r}")
    return _lines(rows)
