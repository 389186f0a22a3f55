"""Few lengths for many: recordings have fixed shapes, so sequences are padded to a bucket's end."""

from __future__ import annotations

__all__ = ["WASTE", "bucket"]

WASTE = 0.05
"""Padding stays below this share of the real length."""


def bucket(length: int, waste: float = WASTE) -> int:
    """The least bucket's end that is not below `length`.

    Buckets end at multiples of the largest power of two that is at most `waste` x length: with
    0.05, 4 apart at 100 tokens and 128 apart at 3,000, so that 20 to 40 lie between a length and
    its double, and less than `waste` x length is padding.
    """
    if length < 1:
        raise ValueError(f"a length of {length} has no bucket; at least 1 is needed")
    if not 0 < waste < 1:
        raise ValueError(f"waste {waste}: a share between 0 and 1 is needed")
    step = 1
    while 2 * step <= waste * length:
        step *= 2
    return -(-length // step) * step
