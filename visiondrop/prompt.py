"""A prompt with pictures, read once on the host: which tokens are real, visual, kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visiondrop.encoder import Picture
from visiondrop.layout import Row, Segment
from visiondrop.trace import StageTrace

__all__ = ["Prompt", "read_prompt"]


@dataclass
class Prompt:
    """How to pack a batch without padding and without the rows that the encoder stage dropped.

    Attributes:
        pool: [M, D'] embeddings; index: per sample, picks into it.
        place_pool: [M'] positions in the unpruned sequence; place_index: per sample, picks into it.
        rows: the layout of the packed batch.
        real: real tokens of each unpruned prompt.
        stages: records of the encoder stage, per sample.
    """

    pool: Tensor
    index: list[np.ndarray]
    place_pool: Tensor
    place_index: list[np.ndarray]
    rows: list[Row]
    real: list[int]
    stages: list[list[StageTrace]]


def read_prompt(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    image_token_id: int,
    pictures: list[Picture],
    embeds: Tensor,
) -> Prompt:
    """Read a batch of prompts.

    Args:
        input_ids: [B, S]; attention_mask: [B, S] of padding or None; embeds: [B, S, D'].
        pictures: in reading order over the batch.

    Raises `ValueError` where placeholders and pictures do not fit.
    """
    visual = (input_ids == image_token_id).cpu().numpy()
    if attention_mask is None:
        real = np.ones_like(visual)
    else:
        real = attention_mask.cpu().numpy().astype(bool)
    batch, width = visual.shape
    device = embeds.device
    flat = batch * width
    counted = np.clip(np.cumsum(real, 1) - 1, 0, None)
    pool, pool_size = [embeds.reshape(flat, -1)], flat
    place_pool, place_size = [torch.from_numpy(counted.reshape(-1)).to(device)], flat
    index, place_index, rows, stages = [], [], [], []
    for r, own in enumerate(split_pictures(visual, pictures)):
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
                )
            )
            at = first + picture.rows
        after = r * width + columns[at:]
        index.append(np.concatenate([*picks, after]))
        place_index.append(np.concatenate([*places, after]))
        row.length = len(index[-1])
        rows.append(row)
        stages.append([s for s in map(stage_record, own, range(len(own))) if s is not None])
    real_counts = real.sum(1).tolist()
    return Prompt(
        torch.cat(pool), index, torch.cat(place_pool), place_index, rows, real_counts, stages
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


def split_pictures(visual: np.ndarray, pictures: list[Picture]) -> list[list[Picture]]:
    """The pictures of each row, in reading order.

    Raises `ValueError` where the placeholders of a row do not add up to whole pictures.
    """
    out, rest = [], list(pictures)
    for r, count in enumerate(visual.sum(1).tolist()):
        own = []
        while count > 0 and rest and rest[0].rows <= count:
            own.append(rest.pop(0))
            count -= own[-1].rows
        if count:
            raise ValueError(
                f"row {r} has {int(visual[r].sum())} placeholders of visual tokens, which do not "
                f"add up to its pictures ({', '.join(str(p.rows) for p in own) or 'none'}); put "
                "one run of placeholders per picture into the prompt, without truncation"
            )
        out.append(own)
    if rest:
        raise ValueError(f"{len(rest)} pictures more than the prompts have placeholders for")
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
