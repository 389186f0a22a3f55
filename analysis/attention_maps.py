"""Attention over the picture: from image to image, and from text to image (Figure 1).

    python -m analysis.attention_maps --help

Only the rows that are asked for are computed, in chunks, from queries and keys; no attention map of
a layer is formed. A row is the softmax over all tokens that its token may see, so that what is
shown sums to the share of attention that the picture gets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.asked import Tokens
from analysis.attention_figure import plot
from analysis.cli import add_flags, finish, layer_list, setting_from
from analysis.probe import Probe, Read
from analysis.scores import visual_columns
from analysis.setting import Case, Setting
from llava.eval.errors import EvalError, run_main
from visiondrop.scoring import CHUNK_ELEMENTS
from visiondrop.trace import SampleTrace
from visiondrop.views import DecoderView

__all__ = ["Maps", "compute", "head_rows", "look_at", "plot", "reader"]

NAME = "attention_maps"
KINDS = ("image_to_image", "text_to_image")
From = Literal["mean", "region"] | int
"""Rows of image to image: the mean of all visual tokens, of those that show what is asked for, or
the visual token of one id."""
Word = Literal["last", "all"] | int
"""Rows of text to image: the prompt's last token, the mean of all after the picture, or the i-th of
these (negative: from the end)."""


@dataclass(frozen=True)
class Maps:
    """Attention of one prompt over its picture.

    Attributes:
        case: the question.
        trace: where tokens lie; grid: (rows, columns) of a picture of one tile.
        identity: [n], ids of the visual tokens, as in traces.
        layers, heads: 0-based; "mean" stands for the mean of all heads.
        values: kind of `KINDS` -> [layers, heads, n] float64.
    """

    case: Case
    trace: SampleTrace
    grid: tuple[int, int]
    identity: np.ndarray
    layers: tuple[int, ...]
    heads: tuple[int | str, ...]
    values: dict[str, np.ndarray]

    def table(self) -> pd.DataFrame:
        """One row for each visual token that shows a part of the picture, where it lies (0..1), and
        what it gets.
        """
        shown = Tokens.of(self.identity, self.trace, self.grid)
        x, y = (shown.boxes[:, i] + shown.boxes[:, i + 2] for i in (0, 1))
        parts = [
            pd.DataFrame(
                {
                    "question": self.case.sample.key, "kind": kind, "layer": layer,
                    "head": str(head), "token": shown.ids, "x": x / 2, "y": y / 2,
                    "attention": values[i, j, shown.places],
                }
            )
            for kind, values in self.values.items()
            for i, layer in enumerate(self.layers)
            for j, head in enumerate(self.heads)
        ]  # fmt: skip
        return pd.concat(parts, ignore_index=True)


def head_rows(view: DecoderView, places: Tensor, columns: Tensor) -> Tensor:
    """[G, H, c] float64, attention of each head from the query rows at `places` [r], their mean, to
    the tokens at `columns` [c].
    """
    heads = view.this.query(places[:1]).shape[1]
    group = view.hidden.shape[0]
    chunk = max(1, CHUNK_ELEMENTS // (group * heads * view.length))
    total = torch.zeros(group, heads, len(columns), device=view.hidden.device, dtype=torch.float64)
    for first in range(0, len(places), chunk):
        rows = view.this.rows(places[first : first + chunk])
        total += rows[..., columns].sum(2, dtype=torch.float64)
    return total / len(places)


def even_rows(places: Tensor, columns: Tensor) -> Tensor:
    """[c] float64, what `head_rows` would be if each row spread evenly over all that it may see."""
    seen = columns[None] <= places[:, None]
    return (seen.double() / (places[:, None] + 1)).mean(0)


def look_at(
    setting: Setting,
    cases: Sequence[Case],
    layers: Sequence[int],
    heads: Sequence[int] | None = None,
    image_from: From = "mean",
    text_from: Word = "last",
    corrected: bool = False,
) -> Iterator[Maps]:
    """Both kinds of attention over each case's picture.

    Args:
        layers: 0-based.
        heads: 0-based; the mean of all by default.
        corrected: divide image to image by what evenly spread attention would give each token, for
            the causal mask lets early tokens be seen by more rows.

    Raises `EvalError` for layers, heads, tokens or words that are not there.
    """
    wrong = [layer for layer in layers if not 0 <= layer < setting.layers]
    if wrong or not layers:
        raise EvalError(f"layers {wrong or 'none'}: this decoder has 0 to {setting.layers - 1}")

    # Which tokens show the region is only known once a picture was read.
    places = _region_places(setting, cases) if image_from == "region" else {}
    read = reader(heads, image_from, text_from, corrected, places)
    names: tuple[int | str, ...] = ("mean",) if heads is None else tuple(heads)
    probe = Probe(tuple(sorted(set(layers))), read)
    # Pictures that are read together share the rows that are asked for.
    walked = setting if image_from == "mean" else replace(setting, batch_size=1)
    for look in walked.walk(probe, cases, label="attention"):
        found = [look.at(layer) for layer in layers]
        values = {kind: np.stack([r.values[kind] for r in found]) for kind in KINDS}
        grid, ids = setting.geometry.grid, found[0].identity
        yield Maps(look.case, look.trace, grid, ids, tuple(layers), names, values)


def reader(
    heads: Sequence[int] | None = None,
    image_from: From = "mean",
    text_from: Word = "last",
    corrected: bool = False,
    places: Mapping[str, np.ndarray] | None = None,
) -> Read:
    """What `look_at` reads of a view, by kind of `KINDS` [G, heads, n], for a `Probe`.

    Args:
        places: of the visual tokens that show what is asked for, by sample key ("region").
    """

    def read(view: DecoderView) -> dict[str, Tensor]:
        columns = visual_columns(view)
        rows = columns[_image_rows(view, image_from, places or {})]
        words = _text_rows(view, text_from)
        image = head_rows(view, rows, columns)
        if corrected:
            # A token that no row may see has no attention to correct.
            image = image / even_rows(rows, columns).clamp(min=1e-12)
        found = {"image_to_image": image, "text_to_image": head_rows(view, words, columns)}
        return {kind: _heads(value, heads) for kind, value in found.items()}

    return read


def _region_places(setting: Setting, cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Which visual tokens show what is asked for, by sample key."""
    found = {}
    probe = Probe((0,), lambda view: {})
    for look in setting.walk(probe, cases, label="regions"):
        shown = Tokens.of(look.at(0).identity, look.trace, setting.geometry.grid)
        places = shown.places[shown.asked(look.case)]
        if not len(places):
            raise EvalError(f"{look.case.sample.question_id}: no token shows what is asked for")
        found[look.case.sample.key] = places
    return found


def _image_rows(view: DecoderView, image_from: From, places: Mapping[str, np.ndarray]) -> Tensor:
    identity = view.identity[0]
    if image_from == "mean":
        return torch.arange(len(identity), device=identity.device)
    if image_from == "region":
        return torch.as_tensor(places[view.keys[0]], device=identity.device)
    found = torch.nonzero(identity == image_from)[:, 0]
    if not len(found):
        raise EvalError(
            f"no visual token has id {image_from}: this picture's are {int(identity.min())} to "
            f"{int(identity.max())}"
        )
    return found


def _text_rows(view: DecoderView, text_from: Word) -> Tensor:
    if text_from == "last":
        return torch.tensor([view.length - 1], device=view.hidden.device)
    if text_from == "all":
        return view.text_places
    count = len(view.text_places)
    if not -count <= text_from < count:
        raise EvalError(f"word {text_from}: {count} tokens follow the picture, counted from 0")
    return view.text_places[text_from : None if text_from == -1 else text_from + 1]


def _heads(value: Tensor, heads: Sequence[int] | None) -> Tensor:
    if heads is None:
        return value.mean(1, keepdim=True)
    wrong = [head for head in heads if not 0 <= head < value.shape[1]]
    if wrong:
        raise EvalError(f"heads {wrong}: this decoder has 0 to {value.shape[1] - 1}")
    return value[:, list(heads)]


def compute(
    setting: Setting, cases: Sequence[Case], layers: Sequence[int], **more: Any
) -> tuple[list[Maps], pd.DataFrame]:
    """`look_at` as a list, and all of it as one table."""
    found = list(look_at(setting, cases, layers, **more))
    return found, pd.concat([maps.table() for maps in found], ignore_index=True)


def choose(setting: Setting, picture: str | None, question: int, count: int) -> list[Case]:
    """The cases to draw: of one picture the question of that number, or of the first `count`
    pictures one question each. Raises `EvalError` for what is not there.
    """
    if picture is None:
        return setting.first_of_pictures[:count]
    own = [case for case in setting.cases if case.picture == picture]
    if not own:
        names = ", ".join(case.picture for case in setting.first_of_pictures[:6])
        raise EvalError(f"no question is about {picture!r}; there are {names} ...")
    if not 0 <= question < len(own):
        raise EvalError(f"--question-number {question}: {picture} has {len(own)}, from 0")
    return [own[question]]


def number_or(*words: str) -> Any:
    """For argparse: one of some words, or a whole number."""

    def read(text: str) -> str | int:
        if text in words:
            return text
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: {', '.join(words)} or a number") from None

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.attention_maps", description=(__doc__ or "").split("\n")[0]
    )
    add_flags(parser, NAME, 24)
    what = parser.add_argument_group("what is looked at")
    what.add_argument("--picture", help="name of one picture (the first ones)")
    what.add_argument("--question-number", type=int, default=0, help="of --picture, from 0")
    what.add_argument("--pictures", type=int, default=3, help="how many without --picture (3)")
    what.add_argument("--layers", type=layer_list, help="0-based (early, middle, late)")
    what.add_argument("--heads", type=layer_list, help="0-based (the mean of all)")
    what.add_argument(
        "--image-from", type=number_or("mean", "region"), default="mean",
        help="visual rows: their mean, those of the region asked for, or one token's id",
    )  # fmt: skip
    what.add_argument(
        "--text-from", type=number_or("last", "all"), default="last",
        help="text rows: the last, the mean of all after the picture, or one of these by number",
    )  # fmt: skip
    what.add_argument("--corrected", action="store_true", help="take out what the causal mask does")
    what.add_argument(
        "--thumbnails", action="store_true", help="of tiles the thumbnail, too, not only crops"
    )
    what.add_argument("--stem", default=NAME, help="name of the files")
    args = parser.parse_args(argv)
    if args.pictures < 1:
        raise EvalError(f"--pictures {args.pictures}: at least 1")
    setting = setting_from(args)
    last = setting.layers - 1
    layers = args.layers or tuple(sorted({last // 8, last // 2, last - last // 8}))
    cases = choose(setting, args.picture, args.question_number, args.pictures)
    found, table = compute(
        setting, cases, layers, heads=args.heads, image_from=args.image_from,
        text_from=args.text_from, corrected=args.corrected,
    )  # fmt: skip
    images = [setting.image(case) for case in cases]
    figures = plot(found, images, args.out / args.stem, thumbnails=args.thumbnails)
    about = {
        **setting.describe(), "layers": list(layers), "image_from": args.image_from,
        "text_from": args.text_from, "corrected": args.corrected,
        "shown": [case.sample.key for case in cases],
    }  # fmt: skip
    return finish(args, NAME, about, {args.stem: table}, figures)


if __name__ == "__main__":
    sys.exit(run_main(main))
