"""Which picture stands where, with pictures and videos among each other and prompts repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visiondrop.encoder import Picture
from visiondrop.prompt import kinds_of, repeated, split_pictures

IMAGE, VIDEO = 90, 91


def picture(rows: int) -> Picture:
    ids = torch.arange(rows)
    return Picture(rows, rows, ids, ids, torch.ones_like(ids), None, None, None)


def prompts(*rows: list[int]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + row for row in rows])


def kinds(ids: torch.Tensor) -> np.ndarray:
    return kinds_of(ids, [IMAGE, VIDEO])


def same(found: list[list[Picture]], expected: list[list[Picture]]) -> bool:
    return [list(map(id, row)) for row in found] == [list(map(id, row)) for row in expected]


IDS = prompts(
    [5, IMAGE, IMAGE, 6, VIDEO, VIDEO, VIDEO, 7, IMAGE],
    [8, 9],
    [VIDEO, VIDEO, IMAGE, IMAGE, 4],
)
A, B, C = picture(2), picture(1), picture(2)
V, W = picture(3), picture(2)


def test_kinds_tell_placeholders_apart() -> None:
    expected = [[0, 1, 1, 0, 2, 2, 2, 0, 1], [0] * 9, [0, 0, 0, 0, 2, 2, 1, 1, 0]]
    assert kinds(IDS).tolist() == expected


def test_pictures_and_videos_are_taken_in_reading_order() -> None:
    found = split_pictures(kinds(IDS), [[A, B, C], [V, W]])
    assert same(found, [[A, V, B], [], [W, C]])


def test_two_pictures_without_text_between_them_are_told_apart() -> None:
    found = split_pictures(kinds(prompts([IMAGE] * 3, [VIDEO] * 5)), [[A, B], [V, W]])
    assert same(found, [[A, B], [V, W]])


@pytest.mark.parametrize("times", [1, 2, 3])
def test_prompts_that_stand_in_several_rows_share_their_pictures(times: int) -> None:
    ids = IDS.repeat_interleave(times, 0)
    queues = repeated(kinds(ids), [[A, B, C], [V, W]])
    found = split_pictures(kinds(ids), queues)
    assert same(found, [r for row in ([A, V, B], [], [W, C]) for r in [row] * times])


def test_pictures_that_were_repeated_before_encoding_are_taken_one_by_one() -> None:
    ids = prompts([IMAGE, IMAGE, 4]).repeat(2, 1)
    found = split_pictures(kinds(ids), repeated(kinds(ids), [[A, C], []]))
    assert same(found, [[A], [C]])


@pytest.mark.parametrize(
    ("ids", "queues"),
    [
        (prompts([IMAGE] * 4), [[A, B], []]),  # a row too long
        (prompts([IMAGE]), [[A], []]),  # a row too short
        (prompts([IMAGE, VIDEO, IMAGE]), [[A], [B]]),  # a picture torn apart by a video
    ],
)
def test_placeholders_that_fit_no_pictures_are_refused(
    ids: torch.Tensor, queues: list[list[Picture]]
) -> None:
    with pytest.raises(ValueError, match="do not add up to its pictures"):
        split_pictures(kinds(ids), queues)


def test_pictures_without_placeholders_are_refused() -> None:
    with pytest.raises(ValueError, match="1 pictures more than"):
        split_pictures(kinds(prompts([IMAGE, IMAGE])), [[A], [V]])
