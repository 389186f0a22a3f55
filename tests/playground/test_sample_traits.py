"""The sample sets of ten benchmarks have the traits that make each benchmark what it is, and their
answers hold by a second reading of the scenes."""

from __future__ import annotations

import base64
import csv
import io
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from playground.pocket import vocabulary as v
from playground.pocket.pool import scene_of
from playground.pocket.scene import Scene, Thing, make_scene
from playground.pocket.sets import gqa, mme
from playground.pocket.sets.pope import OBJECTS, objects
from tests.playground.bundled import NAMES, ROOT, load, notes_of


def table(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


# --- a second reading of the scene ---------------------------------------------------------------


def things(scene: Scene, name: str) -> list[Thing]:
    """What "red circle", "circle" or "blue sign" means: independent of the asker."""
    words = name.removeprefix("a ").removeprefix("an ").split()
    return [
        t for t in scene.things
        if words[-1] == (t.shape or "sign") and (len(words) == 1 or words[0] == t.color)
    ]  # fmt: skip


def middle(t: Thing) -> np.ndarray:
    return np.array([t.box[0] + t.box[2], t.box[1] + t.box[3]]) / 2


STEPS = {
    "to the left of": lambda d: -d[0], "to the right of": lambda d: d[0],
    "above": lambda d: -d[1], "below": lambda d: d[1],
}  # fmt: skip


def follow(scene: Scene, phrase: str) -> Thing:
    """ "nearest object below the nearest object above the red star", read from the right."""
    phrase = phrase.removeprefix("the ")
    if not phrase.startswith("nearest object "):
        (found,) = things(scene, phrase)
        return found
    rest = phrase.removeprefix("nearest object ")
    way = next(w for w in STEPS if rest.startswith(w))
    start = follow(scene, rest.removeprefix(way + " "))
    ahead = [
        t for t in scene.things if t is not start and STEPS[way](middle(t) - middle(start)) > 4
    ]
    return min(ahead, key=lambda t: float(np.hypot(*(middle(t) - middle(start)))))


@pytest.mark.parametrize("i", range(25))
def test_relations_hold_by_a_second_reading(i: int) -> None:
    scene = make_scene(3, i)
    seen = Counter()
    for q in gqa.asked(scene, np.random.default_rng(i)):
        words = q.text.rstrip("?")
        if q.type in ("near_color", "near_shape", "chain_color", "chain_shape"):
            what = words.split()[1]
            found = follow(scene, words.split(" is the ", 1)[1])
            assert getattr(found, what) == q.answer, q
        elif q.type in ("is_side", "side", "is_height", "height"):
            first = words.removeprefix("Is the ")
            a = " ".join(first.split()[:2])
            b = first.split(" the ")[-1]
            (one,), (two,) = things(scene, a), things(scene, b)
            dx, dy = middle(one) - middle(two)
            truth = {"left": dx < 0, "right": dx > 0, "above": dy < 0, "below": dy > 0}
            if q.answer in truth:
                assert truth[q.answer], q
            else:
                (value,) = [w for w in truth if f" {w} " in words]
                assert truth[value] == (q.answer == "yes"), q
        elif q.type in ("and", "or"):
            parts = words.split("both " if q.type == "and" else "either ")[1]
            there = [bool(things(scene, p)) for p in parts.split(f" {q.type} ")]
            assert (all(there) if q.type == "and" else any(there)) == (q.answer == "yes"), q
        elif q.type == "same":
            a, b = (w.split()[0] for w in words.split("the ")[1:3])
            same = things(scene, a)[0].color == things(scene, b)[0].color
            assert same == (q.answer == "yes"), q
        else:
            continue
        seen[q.type] += 1
    assert len(seen) >= 5


# --- traits --------------------------------------------------------------------------------------


def test_vqav2_answer_types_and_ten_answers() -> None:
    entries = load("vqav2", "v2_mscoco_val2014_annotations.json")["annotations"]
    kinds = Counter(e["answer_type"] for e in entries)
    assert set(kinds) == {"yes/no", "number", "other"} and min(kinds.values()) >= 50
    for e in entries:
        answers = [a["answer"] for a in e["answers"]]
        assert len(answers) == 10 and answers.count(e["multiple_choice_answer"]) >= 8
        assert [a["answer_id"] for a in e["answers"]] == list(range(1, 11))
        assert (e["answer_type"] == "yes/no") == (e["multiple_choice_answer"] in ("yes", "no"))
    everything = {e["question_id"] for e in load("vqav2", "llava_vqav2_mscoco_test2015.jsonl")}
    part = {e["question_id"] for e in load("vqav2", "llava_vqav2_mscoco_test-dev2015.jsonl")}
    assert part < everything and len(part) > 10
    benchmark = get_benchmark("vqav2", "test-dev")
    assert len(benchmark.read(benchmark.files(ROOT / "vqav2"))) == len(part)


def test_vizwiz_has_one_question_a_picture_a_third_without_answer() -> None:
    entries = load("vizwiz", "val.json")
    assert len({e["image"] for e in entries}) == len(entries) >= 300
    without = [e for e in entries if not e["answerable"]]
    assert 0.25 < len(without) / len(entries) < 0.4
    assert {e["answer_type"] for e in without} == {"unanswerable"}
    kinds = {e["question_id"]: e["type"] for e in notes_of("vizwiz")}
    blurred = [e for e in without if kinds[e["image"]] == "blurred"]
    assert 20 < len(blurred) < len(without) - 20  # and others ask for what is not there
    # The wording does not give it away: every beginning is also asked with an answer.
    start = {e["question"].rsplit(" ", 2)[0] for e in entries if e["answerable"]}
    assert {e["question"].rsplit(" ", 2)[0] for e in without} <= start

    def edges(e: dict[str, Any]) -> float:
        grey = np.asarray(Image.open(ROOT / "vizwiz" / "val" / e["image"]).convert("L"), float)
        return float(np.abs(np.diff(grey)).mean())

    sharp = [e for e in entries if e["answerable"]]
    assert np.median([edges(e) for e in blurred]) < 0.3 * np.median([edges(e) for e in sharp[:40]])


def test_gqa_has_all_types_programs_and_several_steps() -> None:
    entries = load("gqa", "data/testdev_balanced_questions.json")
    kinds = Counter(e["types"]["structural"] for e in entries.values())
    assert set(kinds) == {"query", "verify", "choose", "logical", "compare"}
    assert {e["types"]["semantic"] for e in entries.values()} == {"attr", "cat", "rel", "obj"}
    hops = Counter()
    for e in entries.values():
        assert e["isBalanced"] and e["answer"] == e["answer"].lower()
        for place, step in enumerate(e["semantic"]):
            assert all(need < place for need in step["dependencies"])
        hops[sum(step["operation"] == "relate" for step in e["semantic"])] += 1
        assert len(e["semantic"]) == e["semanticStr"].count("->") + 1
    assert hops[1] >= 30 and hops[2] >= 30
    yes = Counter(e["answer"] for e in entries.values() if e["answer"] in ("yes", "no"))
    assert abs(yes["yes"] - yes["no"]) <= 10


def test_pope_samples_negatives_in_three_ways() -> None:
    lines = load("pope", "llava_pope_test.jsonl")
    assert {line["category"] for line in lines[:100]} == {"random", "popular", "adversarial"}
    often: Counter[str] = Counter()
    beside: dict[str, Counter[str]] = defaultdict(Counter)
    for i in range(306):  # counted anew
        there = [name for name in OBJECTS if things(scene_of(i), name)]
        assert there == objects(scene_of(i))
        often.update(there)
        for a in there:
            beside[a].update(b for b in there if b != a)
    pairs: dict[str, list[tuple[str, str]]] = {}
    for category in ("random", "popular", "adversarial"):
        labels = load("pope", f"coco/coco_pope_{category}.json")
        by_image = defaultdict(list)
        for label in labels:
            by_image[label["image"]].append(label)
        pairs[category] = []
        for number, (image, six) in enumerate(by_image.items()):
            names = [r["text"].split(" ", 3)[3].removesuffix(" in the image?") for r in six]
            truth = ["yes" if things(scene_of(number), name) else "no" for name in names]
            assert truth == [r["label"] for r in six] == ["yes", "no"] * 3, image
            assert len(set(names)) == 6
            pairs[category] += list(zip(names[::2], names[1::2], strict=True))
    yes = {category: [a for a, _ in found] for category, found in pairs.items()}
    assert yes["random"] == yes["popular"] == yes["adversarial"]
    frequency = {c: np.mean([often[no] for _, no in found]) for c, found in pairs.items()}
    together = {c: np.mean([beside[a][no] for a, no in found]) for c, found in pairs.items()}
    assert frequency["popular"] >= frequency["adversarial"] > 2 * frequency["random"]
    assert together["adversarial"] >= together["popular"] > 2 * together["random"]


def test_mme_asks_yes_and_no_about_every_picture_of_fourteen_tasks() -> None:
    lines = load("mme", "llava_mme.jsonl")
    by_picture = defaultdict(list)
    for line in lines:
        by_picture[line["question_id"]].append(line)
    assert all(len(pair) == 2 for pair in by_picture.values())
    tasks = Counter(line["category"] for line in lines)
    assert len(tasks) == 14 and set(tasks.values()) == {22}
    assert len({line["category"] for line in lines[:28]}) == 14
    root = ROOT / "mme" / mme.ROOT
    assert {p.name for p in root.iterdir()} == set(tasks)
    for task in tasks:
        texts = sorted(root.joinpath(task).rglob("*.txt"))
        assert len(texts) == 11
        for text in texts:
            rows = [line.split("\t") for line in text.read_text().splitlines()]
            assert [answer for _, answer in rows] == ["Yes", "No"]
            assert all(q.endswith("? Please answer yes or no.") for q, _ in rows)
            assert (text.parent.name == "questions_answers_YN") == (task in mme.APART)


@pytest.mark.parametrize("name", ["mmbench", "mmbench_cn"])
def test_mmbench_rotates_options_and_shares_pictures(name: str) -> None:
    (path,) = (ROOT / name).glob("*.tsv")
    rows = table(path)
    groups = defaultdict(list)
    for row in rows:
        groups[int(row["index"]) % 1_000_000].append(row)
    assert len(groups) == 300
    for group in groups.values():
        options = [[row[c] for c in "ABCD" if row[c]] for row in group]
        assert len(group) == len(options[0]) in (2, 3, 4)
        right = {o["ABCD".index(row["answer"])] for o, row in zip(options, group, strict=True)}
        assert len(right) == 1 and len({row["answer"] for row in group}) == len(group)
        for turn, found in enumerate(options):
            assert found == options[0][turn:] + options[0][:turn]
            assert int(group[turn]["index"]) // 1_000_000 == turn
    cells = Counter(len(row["image"]) < 64 for row in rows)
    assert cells[False] == 50 and cells[True] == len(rows) - 50
    by_index = {row["index"]: row for row in rows}
    for row in rows:
        shared = row if len(row["image"]) > 64 else by_index[row["image"]]
        assert len(shared["image"]) > 64
    first = Image.open(io.BytesIO(base64.b64decode(rows[0]["image"])))
    assert first.size == (336, 336)
    assert {bool(row["hint"]) for row in rows} == {True, False}
    assert len({row["category"] for row in rows}) >= 7 and {row["split"] for row in rows} == {"dev"}


def test_mmbench_cn_asks_the_same_in_chinese() -> None:
    (english,), (chinese,) = ((ROOT / n).glob("*.tsv") for n in ("mmbench", "mmbench_cn"))
    for a, b in zip(table(english), table(chinese), strict=True):
        same = ("index", "answer", "image", "category", "l2-category", "split")
        assert [a[k] for k in same] == [b[k] for k in same]
        assert any("\u4e00" <= c <= "\u9fff" for c in b["question"])
        known = {*v.COLORS, *v.SHAPES, *v.PLURALS.values()}
        assert not known & set(b["question"].lower().split()), b["question"]
        for c in "ABCD":
            assert bool(a[c]) == bool(b[c]) and b[c] not in known


def test_sqa_has_lectures_hints_and_questions_without_picture() -> None:
    problems, splits = load("sqa", "problems.json"), load("sqa", "pid_splits.json")
    entries = load("sqa", "llava_test_CQM-A.json")
    assert [e["id"] for e in entries] == splits["test"]
    assert not set(splits["train"]) & set(splits["test"])
    shown = [e for e in entries if "image" in e]
    assert 100 < len(shown) < 200
    used = Counter()
    for e in entries:
        p, value = problems[e["id"]], e["conversations"][0]["value"]
        assert value.startswith("<image>\n") == ("image" in e) == bool(p["image"])
        assert (f"Context: {p['hint']}\n" in value) == bool(p["hint"])
        used.update([len(p["choices"]), bool(p["hint"]), bool(p["lecture"]), p["subject"]])
        assert e["conversations"][1]["value"] == f"The answer is {'ABCDE'[p['answer']]}."
    assert {2, 3, 4, 5, True, False} <= set(used)
    assert sum("science" in str(kind) for kind in used) == 3


def test_seed_has_nine_dimensions_and_pictures_without_ending() -> None:
    content = load("seed", "SEED-Bench.json")
    names = {number: name for name, number in content["question_type"].items()}
    assert len(names) == 12
    used = Counter(names[q["question_type_id"]] for q in content["questions"])
    assert len(used) == 9 and min(used.values()) >= 25
    for line, q in zip(load("seed", "llava-seed-bench.jsonl"), content["questions"], strict=True):
        choices = [q[f"choice_{c}"] for c in "abcd"]
        assert len(set(choices)) == 4 and line["image"] == f"SEED-Bench-image/{q['data_id']}"
        assert "\n".join(f"{a}. {b}" for a, b in zip("ABCD", choices, strict=True)) in line["text"]


def test_mmvet_asks_freely() -> None:
    entries = load("mmvet", "mm-vet.json")
    lines = load("mmvet", "llava-mm-vet.jsonl")
    for line in lines:
        e = entries[f"v1_{line['question_id']}"]
        assert line["text"] == e["question"] and line["text"].endswith("?")
        assert e["answer"].endswith(".") and e["imagename"] == line["image"]
    several = sum(len(e["capability"]) > 1 for e in entries.values())
    assert 0.4 < several / len(entries) < 0.9


@pytest.mark.parametrize("name", NAMES)
def test_guessing_is_weak(name: str) -> None:
    """The best constant answer of a type is right in less than two thirds; choices are spread."""
    answers = defaultdict(Counter)
    for e in notes_of(name):
        answers[e["type"]][e["answer"]] += 1
    for kind, found in answers.items():
        n, most = sum(found.values()), found.most_common(1)[0][1]
        # POPE's popular objects are of few kinds: there yes and no are even in each category.
        if kind not in ("absent", "blurred") and name != "pope" and n >= 15:
            assert most / n < 0.67, (kind, found)
