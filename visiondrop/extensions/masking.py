"""Attention masks for methods that keep the tokens but not all of the computation.

A batch is packed: rows are left-padded, the visual tokens of a picture stand together, and each
decoder block may hold another number of them. B rows of S columns; masks are true where a query
(second last axis) sees a key (last axis). `Hooked` is the base of extensions with hooks of their
own on one model object.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visiondrop.extensions.base import Extension
from visiondrop.layout import Row

if TYPE_CHECKING:
    from visiondrop.decoder import Mechanism

__all__ = [
    "Columns",
    "Hooked",
    "causal",
    "columns_of",
    "neighbourhood",
    "refuse_maskless_attention",
    "seen_by",
    "with_mask",
]

MASKABLE = ("eager", "sdpa")


@dataclass
class Columns:
    """What stands in each column of a packed batch.

    Attributes:
        picture: [B, S] number of the picture in its prompt, -1 where the column is no visual token.
        patch: [B, S] patch id of a visual token; -1 for a CLS token and where there is none.
    """

    picture: Tensor
    patch: Tensor

    @property
    def visual(self) -> Tensor:
        """[B, S] bool."""
        return self.picture >= 0


def columns_of(rows: list[Row], width: int, device: torch.device) -> Columns:
    """The columns of the layout `rows`, left-padded to `width`."""
    picture = torch.full((len(rows), width), -1, device=device)
    patch = torch.full((len(rows), width), -1, device=device)
    for r, row in enumerate(rows):
        for segment in row.segments:
            first = width - row.length + segment.start
            own = slice(first, first + segment.length)
            picture[r, own] = segment.picture
            patch[r, own] = segment.identity.to(device)
    return Columns(picture, patch)


def neighbourhood(columns: Columns, grid: tuple[int, int], window: int | None) -> Tensor:
    """[B, S, S] bool: pairs of visual tokens of one picture at most (window - 1) / 2 patches apart,
    in rows and in columns of the patch grid; all pairs of one picture where `window` is None. A
    token without a place on the grid (CLS) neighbours every token of its picture.
    """
    one = columns.picture[:, :, None] == columns.picture[:, None]
    pairs = one & columns.visual[:, None]
    if window is None:
        return pairs
    side = (window - 1) // 2
    apart = [
        (place[:, :, None] - place[:, None]).abs() <= side
        for place in (columns.patch // grid[1], columns.patch % grid[1])
    ]
    nowhere = columns.patch < 0
    return pairs & ((apart[0] & apart[1]) | nowhere[:, :, None] | nowhere[:, None])


def causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """[1, 1, queries, keys] bool: the last query stands at the last key, none sees a later one."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[
        None, None
    ]


def seen_by(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """A decoder layer's `attention_mask` as bool [B or 1, 1, queries, keys]; None is causal."""
    if mask is None:
        return causal(queries, keys, device)
    return (mask if mask.dtype == torch.bool else mask == 0)[..., -queries:, :keys]


def with_mask(kwargs: dict[str, Any], seen: Tensor, attention: str, dtype: torch.dtype) -> dict:
    """A layer's keyword arguments with `seen` as mask, in the form that `attention` takes: bool for
    "sdpa", additive for "eager".
    """
    if attention == "sdpa":
        return dict(kwargs, attention_mask=seen)
    additive = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return dict(kwargs, attention_mask=additive.masked_fill_(~seen, torch.finfo(dtype).min))


def refuse_maskless_attention(name: str, attention: str) -> None:
    """Raise `ValueError` where the attention takes no mask of single query-key pairs."""
    if attention not in MASKABLE:
        raise ValueError(
            f"{name!r} hides single query-key pairs, and attention {attention!r} takes masks of "
            f"padding only; load the model with attn_implementation={' or '.join(MASKABLE)}"
        )


class Hooked(Extension):
    """An extension that is hooks on decoder modules; `detach` removes them all."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.memo: tuple[tuple[Any, ...], Tensor] | None = None

    def attach(self, mechanism: Mechanism) -> None:
        """Check the model, then set the hooks.

        Raises `ValueError` on a model that cannot carry them, or carries such hooks already.
        """
        others = [e for e in mechanism.extensions if e is not self]
        if any(type(other) is type(self) for other in others):
            raise ValueError(
                f"two parts of {mechanism.method.name!r} both bring {type(self).__name__}; compose "
                "each method that acts on the computation once"
            )
        self.mechanism = mechanism
        self.decoder = mechanism.decoder
        self.attention: str = mechanism.decoder.config._attn_implementation
        self.check()
        self.set_hooks()

    def detach(self) -> None:
        """Remove the hooks and forget the model."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.memo = [], None
        self.reset()
        for name in ("mechanism", "decoder"):
            self.__dict__.pop(name, None)

    def masked(
        self, kwargs: dict[str, Any], key: tuple[Any, ...], seen: Callable[[], Tensor], like: Tensor
    ) -> dict[str, Any]:
        """A layer's keyword arguments with the mask `seen()`, made once for as long as `key` (what
        it is made from: the same objects, equal numbers) stays.
        """
        key = (*key, like.device)
        if self.memo is None or not same(self.memo[0], key):
            made = with_mask({}, seen(), self.attention, like.dtype)
            self.memo = (key, made["attention_mask"])
        return dict(kwargs, attention_mask=self.memo[1])

    def check(self) -> None:
        """Raise `ValueError` on a model that cannot carry it."""

    def reset(self) -> None:
        """Drop what the last forward left."""

    @abstractmethod
    def set_hooks(self) -> None:
        """Register hooks, each with `before` or `after`."""

    def before(self, module: Any, hook: Any) -> None:
        """`hook(module, args, kwargs)` before the module's forward."""
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: Any, hook: Any) -> None:
        """`hook(module, args, output)` after the module's forward."""
        self.handles.append(module.register_forward_hook(hook))


def same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Whether all are the same objects, or equal numbers and devices."""
    return len(first) == len(second) and all(
        a is b or (isinstance(a, (int, torch.device)) and a == b)
        for a, b in zip(first, second, strict=True)
    )


def hidden_of(args: Any, kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a decoder layer is about to read."""
    return args[0] if args else kwargs["hidden_states"]
