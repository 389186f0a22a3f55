"""Question files made of the official files, against those that the generator wrote."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from llava.data import convert
from llava.eval.errors import EvalError
from tests.data.official import SAMPLES, rosetta


def rows_of(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize(
    ("name", "make", "file"),
    [
        ("seed", convert.seed, "llava-seed-bench.jsonl"),
        ("mmvet", convert.mmvet, "llava-mm-vet.jsonl"),
    ],
)
def test_the_same_bytes(name, make, file):
    assert make(SAMPLES / name) == (SAMPLES / name / file).read_bytes()


def test_scienceqa_the_same_entries():
    made = json.loads(convert.scienceqa(SAMPLES / "sqa"))
    assert made == json.loads((SAMPLES / "sqa" / "llava_test_CQM-A.json").read_bytes())


def test_mme_the_same_questions():
    made = rows_of(convert.mme(SAMPLES / "mme"))
    theirs = rows_of((SAMPLES / "mme" / "llava_mme.jsonl").read_bytes())

    def order(row):
        return row["category"], row["question_id"], row["text"]

    assert sorted(made, key=order) == sorted(theirs, key=order)


def test_pope_the_same_questions_in_each_category():
    """Labels belong to questions by position within a category."""

    def by_category(content: bytes) -> dict[str, list]:
        groups = defaultdict(list)
        for row in rows_of(content):
            groups[row["category"]].append((row["image"], row["text"]))
        return groups

    made = convert.pope(SAMPLES / "pope")
    theirs = (SAMPLES / "pope" / "llava_pope_test.jsonl").read_bytes()
    assert by_category(made) == by_category(theirs)
    assert [row["question_id"] for row in rows_of(made)] == list(range(540))


def test_pope_mends_the_typing_error(tmp_path):
    (tmp_path / "coco").mkdir()
    row = {
        "question_id": 1,
        "image": "a.jpg",
        "text": "Is there a cat in the imange?",
        "label": "no",
    }
    for category in convert.POPE_CATEGORIES:
        (tmp_path / "coco" / f"coco_pope_{category}.json").write_text(json.dumps(row) + "\n")
    assert rows_of(convert.pope(tmp_path))[0]["text"].startswith("Is there a cat in the image?\n")


def test_textvqa_by_hand(tmp_path):
    entries = [
        {"image_id": "ab", "question": "what is it?"},
        {"image_id": "cd", "question": "who?"},
    ]
    ocr = [{"image_id": "cd", "ocr_tokens": []}, {"image_id": "ab", "ocr_tokens": ["NO", "EXIT"]}]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": entries}))
    (tmp_path / convert.ROSETTA).write_text(json.dumps({"data": ocr}))
    assert rows_of(convert.textvqa(tmp_path)) == [
        {
            "question_id": "ab",
            "image": "ab.jpg",
            "text": "what is it?\nReference OCR token: NO, EXIT\n"
            "Answer the question using a single word or phrase.",
            "category": "default",
        },
        {
            "question_id": "cd",
            "image": "cd.jpg",
            "text": "who?\nReference OCR token: \n"
            "Answer the question using a single word or phrase.",
            "category": "default",
        },
    ]


def test_textvqa_keeps_the_questions_of_the_sample(tmp_path):
    shutil.copy(SAMPLES / "textvqa" / "TextVQA_0.5.1_val.json", tmp_path)
    (tmp_path / convert.ROSETTA).write_bytes(rosetta())
    theirs = rows_of((SAMPLES / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl").read_bytes())
    made = rows_of(convert.textvqa(tmp_path))
    for mine, other in zip(made, theirs, strict=True):
        lines, others = mine["text"].split("\n"), other["text"].split("\n")
        assert (lines[0], lines[2:]) == (others[0], others[2:])  # tokens differ by question there
        assert (mine["question_id"], mine["image"]) == (other["question_id"], other["image"])


def test_vqav2_test2015(tmp_path):
    questions = [{"image_id": 7, "question": "Is it?", "question_id": 7000}]
    content = {"data_subtype": "test2015", "questions": questions}
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(json.dumps(content))
    assert rows_of(convert.vqav2_test2015(tmp_path)) == [
        {
            "question_id": 7000,
            "image": "COCO_test2015_000000000007.jpg",
            "text": "Is it?\nAnswer the question using a single word or phrase.",
            "category": "default",
        }
    ]


def test_a_name_that_leaves_the_folder(tmp_path):
    content = {"v1_0": {"imagename": "../../etc/passwd", "question": "?"}}
    (tmp_path / "mm-vet.json").write_text(json.dumps(content))
    with pytest.raises(EvalError, match="leaves the image folder"):
        convert.mmvet(tmp_path)


@pytest.mark.parametrize(
    ("make", "file", "content", "text"),
    [
        (convert.mmvet, "mm-vet.json", '{"v1_0": {}}', "'v1_0'"),
        (convert.mmvet, "mm-vet.json", "[]", "is not mm-vet.json"),
        (convert.seed, "SEED-Bench.json", '{"questions": [{}]}', "question 1: .*data_type"),
        (convert.seed, "SEED-Bench.json", '{"questions"', "not valid JSON"),
        (convert.textvqa, convert.ROSETTA, '{"data": [{"image_id": 1}]}', "entry 1: expected"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, make, file, content, text):
    (tmp_path / file).write_text(content)
    with pytest.raises(EvalError, match=text):
        make(tmp_path)
