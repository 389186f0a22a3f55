"""GQA: compositional questions with their programs, of one to three steps, by structural and
semantic type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import vocabulary as v
from ..asking import SHORT, Asked, Picker, a_or_an, ask, confirm, one_of, short
from ..facts import Fact, facts
from ..pool import SQUARE, Pool, SampleSet
from ..scene import Scene

# Skill -> structural, semantic and detailed type.
TYPES = {
    "color": ("query", "attr", "directOf"),
    "shape": ("query", "cat", "categoryThat"),
    "place_color": ("query", "attr", "positionQuery"),
    "place_shape": ("query", "cat", "categoryThat"),
    "near_color": ("query", "rel", "relO"),
    "near_shape": ("query", "rel", "categoryRelS"),
    "chain_color": ("query", "rel", "relO"),
    "chain_shape": ("query", "rel", "categoryRelS"),
    "exist": ("verify", "obj", "exist"),
    "is_color": ("verify", "attr", "verifyAttr"),
    "is_side": ("verify", "rel", "relVerify"),
    "is_height": ("verify", "rel", "relVerify"),
    "is_near_shape": ("verify", "rel", "existRelS"),
    "side": ("choose", "rel", "relChooser"),
    "height": ("choose", "rel", "relChooser"),
    "choose_color": ("choose", "attr", "chooseAttr"),
    "same": ("compare", "attr", "twoSame"),
    "and": ("logical", "obj", "existAnd"),
    "or": ("logical", "obj", "existOr"),
}
DIRECT = tuple(kind for kind in TYPES if TYPES[kind][0] == "query") + ("side", "height", "same")
CONFIRM = ("color", "side", "height", "near_shape")


def asked(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Questions of all five structural types."""
    return [q for _, q in _with_facts(scene, rng)]


def _with_facts(scene: Scene, rng: np.random.Generator) -> list[tuple[Fact, Asked]]:
    known = facts(scene, rng)
    out = [(f, short(f)) for f in known if f.type in (*DIRECT, "exist")]
    for f in known:
        if f.type in CONFIRM:
            text, answer = confirm(f, rng, yes=bool(rng.random() < 0.5))
            out.append((f, ask(f, f"{text}\n{SHORT}", answer, text, f"is_{f.type}")))
        if f.type == "color":
            two = [f.answer, one_of(f.wrong, rng)]
            first, second = (two[int(i)] for i in rng.permutation(2))
            text = f"Is the {f.words['a']} {first} or {second}?"
            out.append((f, ask(f, f"{text}\n{SHORT}", f.answer, text, "choose_color")))
    return out + _logical([f for f in known if f.type == "exist"], rng)


def _logical(found: list[Fact], rng: np.random.Generator) -> list[tuple[Fact, Asked]]:
    """Two existences joined by "and" or "or"."""
    out = []
    for _ in range(4 if len(found) > 1 else 0):
        a, b = (found[int(i)] for i in rng.permutation(len(found))[:2])
        truth = [f.answer == "yes" for f in (a, b)]
        names = [a_or_an(f.words["a"]) for f in (a, b)]
        region = tuple(sorted({*a.region, *b.region}))
        evidence = tuple(sorted({*a.evidence, *b.evidence}))
        named = tuple(sorted({*a.named, *b.named}))
        words = {"a": a.words["a"], "b": b.words["a"]}
        for kind, text, yes in (
            ("and", f"Are there both {names[0]} and {names[1]}?", all(truth)),
            ("or", f"Is there either {names[0]} or {names[1]}?", any(truth)),
        ):
            fact = Fact(kind, words, "yes" if yes else "no", (), region, evidence, named)
            out.append((fact, ask(fact, f"{text}\n{SHORT}", fact.answer, text)))
    return out


def program(f: Fact, kind: str) -> list[dict[str, Any]]:
    """The question's steps, in GQA's form."""
    steps: list[dict[str, Any]] = []

    def step(operation: str, argument: str, *needs: int) -> int:
        steps.append({"operation": operation, "dependencies": list(needs), "argument": argument})
        return len(steps) - 1

    w = f.words
    if kind in ("and", "or"):
        found = [step("exist", "?", step("select", f"{w[k]} (-)")) for k in ("a", "b")]
        step(kind, "", *found)
        return steps
    if kind == "same":
        step("same color", "", *(step("select", f"{w[k]} (-)") for k in ("a", "b")))
        return steps
    if "where" in w:  # from the last word of the question to the first
        at = step("select", f"{w['b']} (-)")
        for where in (w.get("where2"), w["where"]):
            at = step("relate", f"object,{where},s (-)", at) if where else at
    else:
        at = step("select", f"{w.get('a') or w.get('color') or w.get('place')} (-)")
    last = {"query": "query", "choose": "choose", "verify": "verify"}[TYPES[kind][0]]
    what = "name" if "shape" in kind else "color" if "color" in kind else "rel"
    if kind == "exist":
        step("exist", "?", at)
    elif what == "rel":
        step(f"{last} rel", f"{w['b']},{f.answer},s (-)", at)
    else:
        step(f"{last} {what}" if last != "query" else "query", what, at)
    return steps


def write(folder: Path, pictures: int = 46, each: int = 7, pool: Pool = SQUARE) -> int:
    """LLaVA's question file, the official balanced questions, and the pictures."""
    out, picker = SampleSet(folder, pool), Picker()
    lines: list[dict[str, Any]] = []
    official: dict[str, Any] = {}
    for i in range(pictures):
        rng, image = pool.rng("gqa", i), f"n{161_000 + 7 * i}"
        out.picture(f"data/images/{image}.jpg", i)
        found = _with_facts(pool.scene(i), rng)
        fact_of = {id(q): f for f, q in found}
        for q in picker.take([q for _, q in found], each, rng):
            name = f"20{1_000_000 + len(lines)}"
            lines.append({"question_id": name, "image": f"{image}.jpg", "text": q.prompt,
                          "category": "default"})  # fmt: skip
            official[name] = _entry(fact_of[id(q)], q, image, name)
            out.note(name, q, picture=i)
    out.lines("llava_gqa_testdev_balanced.jsonl", lines)
    out.json("data/testdev_balanced_questions.json", official)
    return out.finish()


def _entry(f: Fact, q: Asked, image: str, name: str) -> dict[str, Any]:
    structural, semantic, detailed = TYPES[q.type]
    steps = program(f, q.type)
    # The official files name each step with the steps that it takes, by their places.
    told = [f"{s['operation']}: {s['argument']}{s['dependencies'] or ''}" for s in steps]
    about = f.words.get("a") or f.words.get("b") or f.words.get("color") or f.words["place"]
    group = "color" if q.answer in v.COLORS else "shape" if q.answer in v.SHAPES else None
    return {
        "semantic": steps,
        "entailed": [],
        "equivalent": [name],
        "question": q.text,
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": group, "local": f"{structural}-{about.replace(' ', '_')}"},
        "answer": q.answer,
        "semanticStr": "->".join(told),
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": detailed, "semantic": semantic, "structural": structural},
        "fullAnswer": _sentence(q),
    }


def _sentence(q: Asked) -> str:
    if q.answer in ("yes", "no"):
        return f"{q.answer.capitalize()}."
    return f"The answer is {q.answer}."
