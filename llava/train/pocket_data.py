"""Training batches of the pocket world: pictures, and questions packed behind one picture.

All questions of a picture share its prefix. Each is a segment of its own: it sees the prefix and
itself, at the positions it would have alone, so that the form trained is the form evaluated. A
third of the segments hold a second round after the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from playground.pocket.asking import Asked
from playground.pocket.labels import HEADS, cls_target, dense_labels
from playground.pocket.questions import Question, all_questions
from playground.pocket.render import render
from playground.pocket.scene import Scene, make_scene
from playground.pocket.sets import FORMS, vizwiz

from .pocket_lessons import PROBES, Lesson, Teacher, choose
from .pocket_model import SYSTEM

IGNORE = -100
MAX_ROWS = 36  # rows of a picture whose attention is watched, of each kind
FORMS_EACH = 5  # forms that are asked about one picture
EACH = {"pope": 7, "gqa": 7, "mme": 7, "mmbench": 4, "mmbench_cn": 4, "sqa": 4, "mmvet": 3}
TRAIN_SEED = 1_000_000  # the sample sets use seeds below this
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32) * 255
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32) * 255


@dataclass(frozen=True)
class Phase:
    """One part of the curriculum. ``text_len`` is the packed length behind each picture."""

    name: str
    grid: int
    steps: int
    batch: int
    micro: int = 1  # parts into which a step's batch is cut
    text_len: int = 0  # 0: dense labels alone
    dense: float = 1.0
    align: float = 0.0  # weight of the projector's alignment with the words' embeddings
    look: float = 0.0  # weight of the attention that answers pay to the patches asked for
    kinds: tuple[str, ...] = ("letter", "number", "word")
    signs: tuple[int, int] = (1, 4)  # how many, end excluded
    few: float = 0.0  # share of pictures with few shapes (see make_scene)
    quota: tuple[tuple[str, int], ...] = ()  # most questions of a type for each picture
    lr: float = 1.0  # multiplies the base rate
    stride: int = 1  # 2: every second decoder layer is left out (it writes zeros until it is used)
    reference: float = 0.3  # share of questions with TextVQA's line of reference OCR tokens
    decay: bool = False  # linear to 3 % over this phase
    frozen: bool = False  # the vision tower stays as it is, and no dense labels are learned
    forms: tuple[tuple[str, float], ...] = ()  # shares of the benchmarks' forms; () is TextVQA's
    scale: float = 1.0  # what the projector's output is multiplied by as the phase begins
    spoilt: float = 0.0  # share of blurred pictures, whose questions have no answer


def _choose(
    found: list[Question], quota: dict[str, int], rng: np.random.Generator
) -> list[Question]:
    left = dict(quota)
    out = []
    for i in rng.permutation(len(found)):
        q = found[int(i)]
        if left.setdefault(q.type, 2) > 0:
            left[q.type] -= 1
            out.append(q)
    return out


def _window(grid: int, rng: np.random.Generator) -> tuple[int, int]:
    """Where, in patches, a small picture lies on the 24 x 24 grid: often in one of its corners."""
    free = 24 - grid
    if rng.random() < 0.7:
        return free * int(rng.integers(2)), free * int(rng.integers(2))
    return int(rng.integers(free + 1)), int(rng.integers(free + 1))


class PocketData(Dataset[dict[str, torch.Tensor]]):
    """Item i is part i % micro of batch i // micro: a function of (seed, phase index, i) alone."""

    def __init__(
        self, phase: Phase, index: int, seed: int, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.phase, self.index, self.seed = phase, index, seed
        self.windows = phase.grid < 24
        self.pad = tokenizer.pad_token_id
        self.prefix = tokenizer(SYSTEM + " USER: ").input_ids
        self.teacher = Teacher(tokenizer, IGNORE)

    def __len__(self) -> int:
        return self.phase.steps * self.phase.micro

    def _lessons(
        self, scene: Scene, spoilt: bool, rng: np.random.Generator
    ) -> list[Callable[[bool], Lesson]]:
        """The picture's questions in random order, to be put first or second in a conversation."""

        def textvqa(q: Question) -> Callable[[bool], Lesson]:
            line = rng.random() < self.phase.reference
            return lambda first: self.teacher.textvqa(q, scene, first, line, rng)

        def of_form(name: str, q: Asked) -> Callable[[bool], Lesson]:
            return lambda first: self.teacher.of_form(name, q, scene, first)

        if spoilt:
            found = choose(FORMS["vizwiz"](scene, rng), 6, rng)
            return [of_form("vizwiz", vizwiz.blurred(q)) for q in found]
        out: list[Callable[[bool], Lesson]] = []
        if not self.phase.forms:
            chosen = _choose(all_questions(scene, rng), dict(self.phase.quota), rng)
            return [textvqa(q) for q in chosen]
        names = [name for name, _ in self.phase.forms]
        share = np.array([share for _, share in self.phase.forms], float)
        taken = rng.choice(len(names), min(FORMS_EACH, len(names)), False, share / share.sum())
        for name in (names[int(i)] for i in taken):
            if name == "textvqa":
                chosen = _choose(all_questions(scene, rng), dict(self.phase.quota), rng)
                out += [textvqa(q) for q in chosen[:7]]
            else:
                found = FORMS[name](scene, rng)
                if self.windows:  # a window's quarters are not the picture's
                    found = [q for q in found if not re.search("quarter of|哪个部分", q.text)]
                asked = choose(found, EACH.get(name, 5), rng)
                out += [of_form(name, q) for q in asked]
        return [out[int(i)] for i in rng.permutation(len(out))]

    def _pack(
        self, lessons: list[Callable[[bool], Lesson]], rng: np.random.Generator,
        place: np.ndarray, patches: int,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Lessons behind a picture of ``patches`` rows; ``place`` has the row of each of the
        scene's squares."""
        n, p = self.phase.text_len, len(self.prefix)
        ids = np.full(n, self.pad, np.int64)
        labels = np.full(n, IGNORE, np.int64)
        pos, seg, kind = np.zeros(n, np.int64), np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        blind = np.zeros(n, bool)
        rows = {k: np.zeros(MAX_ROWS, np.int64) for k in PROBES}
        wanted = {k: np.zeros((MAX_ROWS, p + patches + n), bool) for k in PROBES}
        used = dict.fromkeys(PROBES, 0)
        places = np.full((MAX_ROWS, 3), -1, np.float32)  # row, x and y; -1 is none
        placed = 0
        at, number, queue = 0, 0, list(lessons)
        while queue:
            rounds = [queue.pop(0)(True)]
            if queue and rounds[0].picture and rng.random() < 0.2:
                second = queue.pop(0)(False)
                rounds += [second] if second.picture else []
            size = sum(len(x.ids) for x in rounds)
            if at + size > n:
                continue
            pos[at : at + size] = np.arange(size)
            seg[at : at + size] = number
            for x in rounds:
                part = slice(at, at + len(x.ids))
                ids[part], labels[part], kind[part] = x.ids, x.labels, x.kinds
                blind[part] = not x.picture
                for probe, looks in x.looks.items():
                    for row, targets in looks:
                        if used[probe] == MAX_ROWS:
                            break
                        rows[probe][used[probe]] = at + row
                        want = wanted[probe][used[probe]]
                        for where, k in targets:
                            if where == "prompt":
                                want[:p] = True
                            else:
                                own = where == "own"
                                want[p + patches + at + k if own else p + int(place[k])] = True
                        used[probe] += 1
                for row, px, py in x.places[: MAX_ROWS - placed]:
                    places[placed] = at + row, px, py
                    placed += 1
                at += len(x.ids)
            number += 1
        out: dict[str, np.ndarray] = {"ids": ids, "labels": labels, "pos": pos, "seg": seg}
        out |= {"kind": kind, "blind": blind, "places": places}
        for name in PROBES:
            out |= {f"{name}/rows": rows[name], f"{name}/want": wanted[name]}
        return out

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ph = self.phase
        items: list[dict[str, np.ndarray]] = []
        step, part = divmod(i, ph.micro)
        size = ph.batch // ph.micro
        for j in range(part * size, (part + 1) * size):
            key = (TRAIN_SEED + self.seed, self.index, step, j)
            rng = np.random.default_rng([*key, 7003])
            x, y = _window(ph.grid, rng)
            scene = make_scene(
                *key,
                size=(ph.grid * 14, ph.grid * 14),
                kinds=ph.kinds,
                signs=ph.signs,
                origin=(x * 14, y * 14),
                few=np.random.default_rng([*key, 7005]).random() < ph.few,
            )
            picture = render(scene, 84 if rng.random() < 0.3 else None)
            spoilt = rng.random() < self.phase.spoilt
            item = {"pixels": vizwiz.spoil(picture) if spoilt else picture}
            if not ph.frozen:
                item |= {"cls": cls_target(scene), **dense_labels(scene)}
            grid = np.arange(576).reshape(24, 24)
            item["grid_ids"] = grid[y : y + ph.grid, x : x + ph.grid].reshape(-1)
            if ph.text_len:
                squares = np.arange(ph.grid**2)
                item |= self._pack(self._lessons(scene, spoilt, rng), rng, squares, len(squares))
            items.append(item)
        batch = {k: torch.from_numpy(np.stack([it[k] for it in items])) for k in items[0]}
        rng = np.random.default_rng([TRAIN_SEED + self.seed, self.index, step, part, 7004])
        # Half of the small batches number their patches densely: as a prompt of another length.
        batch["stretch"] = torch.tensor(bool(rng.random() < 0.5))
        batch["prefix"] = torch.tensor(self.prefix)
        return batch


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """(b, h, w, 3) uint8 -> (b, 3, h, w) float32 with CLIP's mean and deviation."""
    mean = torch.from_numpy(MEAN).to(pixels.device)
    std = torch.from_numpy(STD).to(pixels.device)
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)


__all__ = ["HEADS", "IGNORE", "Phase", "PocketData", "normalize"]
