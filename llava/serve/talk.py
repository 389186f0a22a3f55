"""One conversation in a terminal: the model with its method, the pictures, and what is told."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from rich.console import Console
from rich.table import Table

from llava.chat import LlavaChat
from llava.conversation import get_template, infer_template
from llava.eval.answering import LoadedModel
from llava.eval.preparing import as_seen
from llava.mm_utils import process_images
from llava.serve.plain_chat import PlainChat
from visiondrop import Full, ImageCache, Reducer, Session, TowerCache, build_method, geometry_of
from visiondrop.draw import draw_sample
from visiondrop.reuse import why_not_reusable
from visiondrop.streaming import Stream
from visiondrop.trace import SampleTrace

__all__ = ["Talk"]

TOWER_BYTES = 256 * 2**20


class Talk:
    """A conversation about pictures, with one method at a time.

    Args:
        loaded: the checkpoint.
        method: of visual-token reduction; None for none.
        conv_mode: a template of `llava.conversation`; by default the one of the model's name.
        sampling: arguments of `generate` for every answer.
        cache_bytes: of keys and values that are kept of pictures.

    Attributes:
        pictures: those of the conversation, in reading order.
        pending: those that go with the next question.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        method: Reducer | None = None,
        conv_mode: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        cache_bytes: int = 2 * 2**30,
    ):
        self.loaded, self.session = loaded, Session(loaded.model)
        self.conv_mode = conv_mode or infer_template(loaded.name)
        get_template(self.conv_mode)
        self.sampling = {"pad_token_id": loaded.pad_id, **(sampling or {})}
        self.cache_bytes, self.towers = cache_bytes, TowerCache(TOWER_BYTES)
        self.geometry = geometry_of(loaded.model)
        self.pictures: list[Image.Image] = []
        self.pending: list[Image.Image] = []
        self.set_method(Full() if method is None else method)

    # ------------------------------------------------------------------ turns

    def set_method(self, method: Reducer) -> None:
        """Another method, and a new conversation about the same pictures."""
        method.check(self.geometry)
        self.method, self.cache = method, None
        self.why_uncached = why_not_reusable(method)
        if self.why_uncached is None:
            self.cache = ImageCache(self.loaded.model, method, self.cache_bytes, self.towers)
        self.begin()

    def begin(self) -> None:
        """A new conversation about the same pictures: they go with the next question."""
        parts = self.loaded.tokenizer, self.loaded.image_processor
        self.chat: LlavaChat | PlainChat
        if self.cache is not None:
            self.chat = LlavaChat(*parts, self.cache, self.conv_mode)
        else:
            self.chat = PlainChat(*parts, self.loaded.model, self.method, self.conv_mode)
        self.pending, self.pictures = [*self.pictures, *self.pending], []

    def add_picture(self, picture: Image.Image) -> None:
        """A picture for the next question."""
        self.pending.append(picture)

    def ask(self, text: str) -> Stream:
        """The answer piece by piece. Call `took` when it was read."""
        ask = functools.partial(self.chat.ask, text, list(self.pending), **self.sampling)
        return self.session.stream(self.loaded.tokenizer, ask, hold_only=True)

    def took(self) -> None:
        """The pending pictures are part of the conversation now."""
        self.pictures, self.pending = [*self.pictures, *self.pending], []

    def method_of(
        self,
        name: str,
        tokens: float | None,
        fields: Mapping[str, str],
        budget: Literal["average", "nominal"] = "average",
    ) -> Reducer:
        """A method as it was typed. Raises `ValueError` before any compute."""
        return build_method(name, tokens, geometry=self.geometry, args=fields, budget=budget)

    # ------------------------------------------------------------------ what is told

    @property
    def sample(self) -> SampleTrace | None:
        """What the method did with the pictures of the conversation."""
        return self.chat.sample if isinstance(self.chat, PlainChat) else self.chat.chat.sample

    def draw(self, file: str) -> Path:
        """Draw what was kept to a PNG. Raises `ValueError` before the first question."""
        sample = self.sample
        if sample is None:
            raise ValueError("nothing to draw: ask about a picture first")
        path = Path(file).expanduser()
        if path.suffix.lower() != ".png":
            raise ValueError(f"{file}: the drawing is a PNG; name it so: /draw {path.stem}.png")
        seen = [self.as_drawn(picture) for picture in self.pictures]
        sheet = draw_sample(sample, seen, self.geometry.grid)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        sheet.save(part, "PNG")
        os.replace(part, path)
        return path

    def as_drawn(self, picture: Image.Image) -> Image.Image:
        """A picture as the model sees it; whole where it is cut into tiles."""
        pixels = process_images([picture], self.loaded.image_processor, self.loaded.model.config)[0]
        return picture if pixels.dim() == 4 else as_seen(pixels, self.loaded.image_processor)

    def ledger(self, console: Console) -> None:
        """Tell tokens per layer, what each stage kept and merged, bytes, and the cache's counts."""
        counts = self.chat.ledger()
        visual, held = counts["visual_per_layer"], counts["held_per_layer"]
        if not any(held):
            console.print("nothing was read yet: ask about a picture first")
        else:
            console.print(layer_table(visual, held))
            for table in stage_tables(self.sample):
                console.print(table)
            console.print(
                f"{self.method.name}: {counts['mean_visual_tokens']:.4g} visual tokens on average "
                f"over the layers, {counts['kv_bytes'] / 1e6:.2f} MB of keys and values, "
                f"{counts['turns']} turn(s)"
            )
        if self.cache is None:
            console.print(f"image cache: not used, {self.why_uncached}")
            return
        stats = self.cache.stats
        console.print(
            f"image cache: {stats.hits} hit(s), {stats.misses} miss(es), {stats.evictions} "
            f"evicted, {stats.entries} held in {stats.held_bytes / 1e6:.2f} MB"
        )


def layer_table(visual: Sequence[int], held: Sequence[int]) -> Table:
    """Visual and all tokens by run of decoder layers that hold equally many."""
    table = Table("decoder layers", "visual tokens", "all tokens held", box=None, pad_edge=False)
    first = 0
    for i in range(1, len(held) + 1):
        same = i < len(held) and (visual[i], held[i]) == (visual[first], held[first])
        if not same:
            name = f"{first}" if i - 1 == first else f"{first}-{i - 1}"
            table.add_row(name, str(visual[first]), str(held[first]))
            first = i
    return table


def stage_tables(sample: SampleTrace | None) -> list[Table]:
    """What each stage kept and merged, a table for each picture."""
    tables = []
    for picture in range(len(sample.grids) if sample is not None else 0):
        assert sample is not None
        stages = [stage for stage in sample.stages if stage.picture == picture]
        if not stages:
            continue
        title = f"picture {picture + 1}" if len(sample.grids) > 1 else None
        table = Table(
            "stage",
            "tokens in",
            "kept",
            "merged into",
            "out",
            box=None,
            pad_edge=False,
            title=title,
        )
        for stage in stages:
            name = stage.place if stage.layer is None else f"layer {stage.layer}"
            merged = len(stage.merged)
            kept = stage.tokens_out - merged
            cells = (stage.tokens_in, kept, merged, stage.tokens_out)
            table.add_row(name + " (skipped)" * stage.skipped, *map(str, cells))
        tables.append(table)
    return tables
