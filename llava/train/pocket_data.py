"""Training batches of the pocket world: pictures, and questions packed behind one picture.

All questions of a picture share its prefix. Each is a segment of its own: it sees the prefix and
itself, at the positions it would have alone, so that the form trained is the form evaluated. A
third of the segments hold a second round after the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from playground.pocket import vocabulary as v
from playground.pocket.labels import HEADS, cls_target, dense_labels
from playground.pocket.questions import SUFFIX, TYPES, Question, all_questions, reference_line
from playground.pocket.render import render
from playground.pocket.scene import make_scene

from .pocket_model import SYSTEM

IGNORE = -100
MAX_ROWS = 20  # answer tokens of a picture whose attention is watched
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
    decay: bool = False  # linear to 5 % over this phase


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
        self.tok = tokenizer
        self.prefix = tokenizer(SYSTEM + " USER: ").input_ids
        self.space = tokenizer(" ", add_special_tokens=False).input_ids[0]
        self._memo: dict[str, list[int]] = {}
        # The word of a question that says what to look for.
        words = {"shape": v.COLORS, "count": v.PLURALS.values()}
        words |= dict.fromkeys(("letter", "number", "word"), v.COLORS)
        words |= dict.fromkeys(("color", "exist"), v.SHAPES)
        words |= dict.fromkeys(("place_color", "place_shape"), ("corner",))
        self.keys = {t: {self.ids(" " + w)[0] for w in found} for t, found in words.items()}

    def __len__(self) -> int:
        return self.phase.steps * self.phase.micro

    def ids(self, text: str) -> list[int]:
        if text not in self._memo:
            if len(self._memo) > 50_000:
                self._memo.clear()
            self._memo[text] = self.tok(text, add_special_tokens=False).input_ids
        return self._memo[text]

    def _round(
        self, q: Question, first: bool, rng: np.random.Generator
    ) -> tuple[list[int], list[int], list[int]]:
        """Tokens, labels and, where the answer's own tokens stand, the question's type."""
        lead = "\n" if first else "USER: "
        ids = self.ids(lead + q.text)
        if rng.random() < self.phase.reference:
            ids = ids + self.ids("\n" + reference_line(rng))
        ids = ids + self.ids("\n" + SUFFIX + " ASSISTANT:")
        answer = [*self.ids(" " + q.answer), self.tok.eos_token_id]
        kind = [-1 if t == self.space else TYPES.index(q.type) for t in answer[:-1]] + [-1]
        blind = [-1] * len(ids)
        return ids + answer, [IGNORE] * len(ids) + answer, blind + kind

    def _pack(self, questions: list[Question], rng: np.random.Generator) -> dict[str, np.ndarray]:
        n = self.phase.text_len
        ids = np.full(n, self.tok.pad_token_id, np.int64)
        labels = np.full(n, IGNORE, np.int64)
        pos, seg, kind = np.zeros(n, np.int64), np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        region = np.zeros((MAX_ROWS, self.phase.grid**2), bool)
        rows = np.zeros(MAX_ROWS, np.int64)
        key_region = np.zeros_like(region)
        key_rows = np.zeros(MAX_ROWS, np.int64)
        row_key = np.full(MAX_ROWS, -1, np.int64)  # the key word's row, for each of ``rows``
        # Where there is no evidence, rows look at the prompt instead of the picture.
        sink, key_sink = np.zeros(MAX_ROWS, bool), np.zeros(MAX_ROWS, bool)
        row = key = 0
        at, number, queue = 0, 0, list(questions)
        while queue:
            asked = [queue.pop(0)]
            if queue and rng.random() < 0.2:
                asked.append(queue.pop(0))
            chain = [self._round(q, i == 0, rng) for i, q in enumerate(asked)]
            toks, labs, kinds = ([t for c in chain for t in c[k]] for k in range(3))
            if at + len(toks) > n:
                continue
            part = slice(at, at + len(toks))
            ids[part], labels[part], kind[part], seg[part] = toks, labs, kinds, number
            pos[part] = np.arange(len(toks))
            owners = [q for q, c in zip(asked, chain, strict=True) for _ in c[0]]
            where: dict[int, int] = {}
            for j, (owner, token) in enumerate(zip(owners, toks, strict=True)):
                if token in self.keys[owner.type] and key < MAX_ROWS and labs[j] == IGNORE:
                    where[id(owner)] = key_rows[key] = at + j
                    key_region[key, list(owner.evidence)] = True
                    key_sink[key] = not owner.evidence
                    key += 1
            for j, (owner, answers) in enumerate(zip(owners, kinds, strict=True)):
                if answers >= 0 and row < MAX_ROWS:  # the row before an answer's token predicts it
                    rows[row] = at + j - 1
                    row_key[row] = where.get(id(owner), -1)
                    region[row, list(owner.evidence)] = True
                    sink[row] = not owner.evidence
                    row += 1
            at, number = at + len(toks), number + 1
        out = {
            "ids": ids,
            "labels": labels,
            "pos": pos,
            "seg": seg,
            "kind": kind,
            "rows": rows,
            "region": region,
            "key_rows": key_rows,
            "key_region": key_region,
        }
        out |= {"row_key": row_key, "sink": sink, "key_sink": key_sink}
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
                size=ph.grid * 14,
                kinds=ph.kinds,
                signs=ph.signs,
                origin=(x * 14, y * 14),
                few=np.random.default_rng([*key, 7005]).random() < ph.few,
            )
            picture = render(scene, 84 if rng.random() < 0.3 else None)
            item = {"pixels": picture, "cls": cls_target(scene), **dense_labels(scene)}
            grid = np.arange(576).reshape(24, 24)
            item["grid_ids"] = grid[y : y + ph.grid, x : x + ph.grid].reshape(-1)
            if ph.text_len:
                chosen = _choose(all_questions(scene, rng), dict(ph.quota), rng)
                item |= self._pack(chosen, rng)
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
