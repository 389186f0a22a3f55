"""A prompt with pictures, read once on the host: which tokens are real, visual, kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visiondrop.encoder import Picture
from visiondrop.layout import Row, Segment
from visiondrop.trace import StageTrace
from visiondrop.transfer import to_device

__all__ = ["Prompt", "kinds_of", "read_prompt", "repeated", "split_pictures"]


@dataclass
class Prompt:
    """How to pack a batch without padding and without the rows that the encoder stage dropped.

    Attributes:
        pool: [M, D'] embeddings; index: per sample, picks into it.
        place_pool: [M'] positions in the unpruned sequence; place_index: per sample, picks into it.
        rows: the layout of the packed batch.
        real: real tokens of each unpruned prompt.
        stages: records of the encoder stage, per sample.
        passed: per sample, tiles that passed the vision tower and tokens that passed the projector.
    """

    pool: Tensor
    index: list[np.ndarray]
    place_pool: Tensor
    place_index: list[np.ndarray]
    rows: list[Row]
    real: list[int]
    stages: list[list[StageTrace]]
    passed: list[tuple[int, int]]


def kinds_of(input_ids: Tensor, token_ids: Sequence[int]) -> np.ndarray:
    """[B, S] on the host: 1 + k where the prompt holds the placeholder `token_ids[k]`, 0 else."""
    ids = input_ids.cpu().numpy()
    kinds = np.zeros_like(ids)
    for k, token in enumerate(token_ids):
        kinds[ids == token] = 1 + k
    return kinds


def repeated(kinds: np.ndarray, queues: Sequence[list[Picture]]) -> list[list[Picture]]:
    """The pictures of each kind for all rows: of a prompt that stands in several rows (beams,
    samples), the same ones for each.

    Args:
        kinds: [B, S], see `kinds_of`.
        queues: for each kind the encoded pictures in reading order, each once.
    """
    out = []
    for k, queue in enumerate(queues):
        counts = (kinds == 1 + k).sum(1).tolist()
        rows = sum(picture.rows for picture in queue)
        times = sum(counts) // rows if rows and sum(counts) % rows == 0 else 1
        if times < 2 or len(counts) % times:
            out.append(queue)
            continue
        rest, all_rows = list(queue), []
        for count in counts[::times]:
            own: list[Picture] = []
            while rest and sum(picture.rows for picture in own) < count:
                own.append(rest.pop(0))
            all_rows += own * times
        out.append(all_rows)
    return out


def read_prompt(
    visual: np.ndarray,
    attention_mask: Tensor | None,
    pictures: list[list[Picture]],
    embeds: Tensor,
) -> Prompt:
    """Read a batch of prompts.

    Args:
        visual: [B, S] bool, where they hold placeholders; attention_mask: [B, S] of padding or
            None; embeds: [B, S, D'].
        pictures: of each row, in reading order (`split_pictures`).

    Raises `ValueError` where the placeholders of a picture do not stand together.
    """
    if attention_mask is None:
        real = np.ones_like(visual)
    else:
        real = attention_mask.cpu().numpy().astype(bool)
    batch, width = visual.shape
    device = embeds.device
    flat = batch * width
    counted = np.clip(np.cumsum(real, 1) - 1, 0, None)
    pool, pool_size = [embeds.reshape(flat, -1)], flat
    place_pool, place_size = [to_device(torch.from_numpy(counted.reshape(-1)), device)], flat
    index, place_index, rows, stages = [], [], [], []
    for r, own in enumerate(pictures):
        columns = np.flatnonzero(real[r])
        is_visual = visual[r, columns]
        row, picks, places, at = Row(0), [], [], 0
        for number, picture in enumerate(own):
            first = find_run(is_visual, at, picture.rows, r, number)
            before = r * width + columns[at:first]
            stay = picture.tokens - picture.spill
            picks += [before, r * width + columns[first : first + stay]]
            if picture.overflow is not None:
                pool.append(picture.overflow.to(device, embeds.dtype))
                picks.append(np.arange(pool_size, pool_size + picture.spill))
                pool_size += picture.spill
            place_pool.append(picture.slot.to(device) + int(counted[r, columns[first]]))
            places += [before, np.arange(place_size, place_size + picture.tokens)]
            place_size += picture.tokens
            start = sum(map(len, picks)) - picture.tokens
            row.segments.append(
                Segment(
                    start,
                    picture.tokens,
                    number,
                    picture.identity,
                    picture.sizes,
                    picture.key,
                    picture.full,
                    picture.score,
                    picture.grid,
                    picture.newlines,
                    picture.share,
                    picture.shape,
                    picture.portion,
                )
            )
            at = first + picture.rows
        after = r * width + columns[at:]
        index.append(np.concatenate([*picks, after]))
        place_index.append(np.concatenate([*places, after]))
        row.length = len(index[-1])
        rows.append(row)
        stages.append([s for s in map(stage_record, own, range(len(own))) if s is not None])
    return Prompt(
        torch.cat(pool),
        index,
        torch.cat(place_pool),
        place_index,
        rows,
        real.sum(1).tolist(),
        stages,
        [tuple(map(sum, zip((0, 0), *(p.passed for p in own)))) for own in pictures],  # type: ignore[misc]
    )


def find_run(is_visual: np.ndarray, at: int, length: int, row: int, number: int) -> int:
    """Where the placeholders of a picture begin, at or after `at`.

    Raises `ValueError` where they do not stand together.
    """
    first = at + int(np.argmax(is_visual[at:]))
    run = is_visual[first : first + length]
    if len(run) < length or not run.all():
        raise ValueError(
            f"row {row}: the {length} placeholders of picture {number} do not stand together"
        )
    return first


def split_pictures(kinds: np.ndarray, queues: Sequence[list[Picture]]) -> list[list[Picture]]:
    """The pictures of each row, in reading order, whatever kinds stand among each other.

    Args:
        kinds: [B, S], see `kinds_of`.
        queues: for each kind the pictures in reading order over the batch.

    Raises `ValueError` where the placeholders of a row do not add up to whole pictures.
    """
    out, rest = [], [list(queue) for queue in queues]
    for r, row in enumerate(kinds):
        own: list[Picture] = []
        places = row[row > 0]
        while len(places):
            queue = rest[places[0] - 1]
            if not queue or not (places[: queue[0].rows] == places[0]).all():
                break
            if queue[0].rows > len(places):
                break
            own.append(queue.pop(0))
            places = places[own[-1].rows :]
        if len(places):
            raise ValueError(
                f"row {r} has {int((row > 0).sum())} placeholders of visual tokens, which do not "
                f"add up to its pictures ({', '.join(str(p.rows) for p in own) or 'none'}); put "
                "one run of placeholders per picture into the prompt, without truncation"
            )
        out.append(own)
    if left := sum(map(len, rest)):
        raise ValueError(f"{left} pictures more than the prompts have placeholders for")
    return out


def stage_record(picture: Picture, place: int) -> StageTrace | None:
    """The encoder stage's record, with the picture's place in its prompt."""
    if picture.stage is None:
        return None
    stage = picture.stage
    return StageTrace(
        stage.place,
        stage.layer,
        place,
        stage.identity,
        stage.source,
        stage.target,
        stage.contextual,
    )
