"""Training batches of clips: many questions packed behind one clip.

As behind a picture (`pocket_data`): each question is a segment that sees the clip and itself, at
the positions it would have alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from playground.pocket.asking import Asked
from playground.pocket.clip_questions import CLIP_TYPES, clip_questions
from playground.pocket.clips import Actor, Clip, make_clip, render_clip

from .pocket_data import IGNORE, TRAIN_SEED
from .pocket_lessons import Lesson, Row, Teacher, choose
from .pocket_model import SYSTEM
from .pocket_video_model import FRAMES, WINDOW

CLIP_PROBES = ("key", "bind", "point", "answer")
ROWS = 64  # rows of a clip whose attention is watched, of each kind
WHEN = (" end", " start", " appears", " disappears", " moves", " move")


@dataclass(frozen=True)
class VideoPhase:
    """One part of the curriculum: clips of ``frames`` frames of ``grid`` x ``grid`` patches."""

    name: str
    grid: int
    frames: int
    steps: int
    batch: int
    micro: int  # parts into which a step's batch is cut
    text_len: int
    look: float = 0.3  # weight of supervised attention
    lr: float = 1.0
    decay: bool = False  # linear to 3 % over this phase
    dense: float = 0.25  # share of clips whose tokens are numbered without gaps


class ClipTeacher:
    """Turns questions about clips into lessons, with the rows that should look somewhere.

    Rows of a picture are patches as of `Clip.patches`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, ignore: int) -> None:
        self.words = Teacher(tokenizer, ignore)
        self.ignore, self.eos = ignore, tokenizer.eos_token_id
        self.when = {self.words.ids(w)[0] for w in WHEN}

    def lesson(self, q: Asked, clip: Clip) -> Lesson:
        w = self.words
        ask = w.ids("\n" + q.prompt)
        ids = ask + w.ids(" ASSISTANT:")
        said = [*w.ids(" " + q.answer), self.eos]
        content = [t != w.space for t in said[:-1]]
        kind = CLIP_TYPES.index(q.type)
        kinds = [-1] * len(ids) + [kind if c else -1 for c in content] + [-1]
        lesson = Lesson(ids + said, [self.ignore] * len(ids) + said, kinds)
        shown: list[Row] = [("picture", p) for p in q.evidence]
        if q.answer == "no":
            shown = [("prompt", 0)]
        keys = self._keys(lesson, len(ask), clip, shown)
        for j, c in enumerate(content):
            if c:
                row = len(ids) + j - 1
                lesson.look("answer", row, shown)
                if keys:
                    lesson.look("point", row, [("own", k) for k in keys])
        return lesson

    def _keys(self, lesson: Lesson, end: int, clip: Clip, shown: list[Row]) -> list[int]:
        """Marks the words that name things, or a time of them; returns their rows."""
        w, ids, keys = self.words, lesson.ids, []

        def key(at: int, actors: list[Actor], first: int | None = None) -> None:
            where: list[Row] = [("picture", p) for p in clip.patches(actors)]
            lesson.look("key", at, where or [("prompt", 0)])
            if first is not None:
                lesson.look("bind", at, [("own", first)])
            keys.append(at)

        for at in range(1, end):
            kind, name = w.names.get(ids[at], ("", ""))
            shade = w.names.get(ids[at - 1], ("", ""))
            color = shade[1] if shade[0] == "color" else None
            if kind == "shape":
                found = [a for a in clip.shapes() if a.thing.shape == name]
                found = [a for a in found if color in (None, a.thing.color)]
                key(at, found, at - 1 if color else None)
            elif kind == "plural":
                key(at, [a for a in clip.shapes() if a.thing.shape == name])
            elif kind == "sign" and color:
                key(at, [a for a in clip.signs() if a.thing.color == color], at - 1)
            elif kind == "color" and w.piece[ids[at + 1]] == " object":
                key(at, [a for a in clip.shapes() if a.thing.color == name])
            elif ids[at] in self.when:
                lesson.look("key", at, shown)
                if keys:
                    lesson.look("bind", at, [("own", keys[-1])])
                keys.append(at)
        return keys


class ClipData(Dataset[dict[str, torch.Tensor]]):
    """Item i is part i % micro of batch i // micro: a function of (seed, phase index, i) alone."""

    def __init__(
        self, phase: VideoPhase, index: int, seed: int, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.phase, self.index, self.seed = phase, index, seed
        self.pad = tokenizer.pad_token_id
        self.prefix = tokenizer(SYSTEM + " USER: ").input_ids
        self.teacher = ClipTeacher(tokenizer, IGNORE)

    def __len__(self) -> int:
        return self.phase.steps * self.phase.micro

    def _pack(self, clip: Clip, rng: np.random.Generator) -> dict[str, np.ndarray]:
        ph, p = self.phase, len(self.prefix)
        n, cells = ph.text_len, ph.grid**2
        visual = ph.frames * (cells + 1)
        ids, labels = np.full(n, self.pad, np.int64), np.full(n, IGNORE, np.int64)
        pos, seg, kind = np.zeros(n, np.int64), np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        rows = {k: np.zeros(ROWS, np.int64) for k in CLIP_PROBES}
        wanted = {k: np.zeros((ROWS, p + visual + n), bool) for k in CLIP_PROBES}
        used = dict.fromkeys(CLIP_PROBES, 0)
        at, number = 0, 0
        for q in choose(clip_questions(clip, rng), 40, rng):
            lesson = self.teacher.lesson(q, clip)
            size = len(lesson.ids)
            if at + size > n:
                continue
            part = slice(at, at + size)
            ids[part], labels[part], kind[part] = lesson.ids, lesson.labels, lesson.kinds
            pos[part], seg[part] = np.arange(size), number
            for probe, looks in lesson.looks.items():
                for row, targets in looks[: ROWS - used[probe]]:
                    rows[probe][used[probe]] = at + row
                    want = wanted[probe][used[probe]]
                    for where, k in targets:
                        if where == "prompt":
                            want[:p] = True
                        elif where == "picture":  # each frame begins with its CLS
                            want[p + k + k // cells + 1] = True
                        else:
                            want[p + visual + at + k] = True
                    used[probe] += 1
            at, number = at + size, number + 1
        out: dict[str, np.ndarray] = {"ids": ids, "labels": labels, "pos": pos, "seg": seg}
        out["kind"] = kind
        for name in CLIP_PROBES:
            out |= {f"{name}/rows": rows[name], f"{name}/want": wanted[name]}
        return out

    def _positions(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(visual + 1,) positions behind the prompt of the clip's tokens, then of the question.

        A small clip mostly has those of the whole one: of frames and patches that are left out,
        gaps."""
        ph = self.phase
        visual = ph.frames * (ph.grid**2 + 1)
        if rng.random() < ph.dense:
            return np.arange(visual + 1)
        whole = WINDOW**2 + 1
        frames = np.linspace(0, FRAMES - 1, ph.frames).round().astype(np.int64)
        one = np.concatenate([[0], cells + 1])
        return np.append((frames[:, None] * whole + one).reshape(-1), FRAMES * whole)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ph = self.phase
        step, part = divmod(i, ph.micro)
        size = ph.batch // ph.micro
        items = []
        for j in range(part * size, (part + 1) * size):
            key = (TRAIN_SEED + self.seed, 8000 + self.index, step, j)
            rng = np.random.default_rng([*key, 7104])
            x, y = (int(k) for k in rng.integers(0, WINDOW - ph.grid + 1, 2))
            clip = make_clip(*key, size=14 * ph.grid, frames=ph.frames, changes=0.8)
            whole = np.arange(WINDOW**2).reshape(WINDOW, WINDOW)
            cells = whole[y : y + ph.grid, x : x + ph.grid].reshape(-1)
            item = {"pixels": render_clip(clip), "grid_ids": cells}
            item["places"] = self._positions(cells, rng)
            items.append(item | self._pack(clip, rng))
        batch = {k: torch.from_numpy(np.stack([it[k] for it in items])) for k in items[0]}
        batch["prefix"] = torch.tensor(self.prefix)
        return batch
