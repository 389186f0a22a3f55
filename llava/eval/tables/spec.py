"""What a table is: benchmarks, rows and budgets, and where published numbers for it are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from visiondrop import Reducer

SEEDS = (0, 1, 2)
FULL, BLANK = "full", "blank picture"
CONTROLS = ("random", "uniform")


@dataclass(frozen=True)
class Variant:
    """A row that is a method with its fields set, and not one by its name.

    Attributes:
        slug: what sets its folder apart, and names it in files.
        title: what the table says.
        group: what is varied.
        build: (visual tokens, geometry) -> the method; ValueError for what cannot be.
        asks_regions: whether ``build`` takes ``regions``, too: the patches that each question asks
            for, by sample key. Only the bundled data says which.
    """

    slug: str
    title: str
    group: str
    build: Callable[..., Reducer]
    asks_regions: bool = False


@dataclass(frozen=True)
class Spec:
    """A table.

    Attributes:
        name: of its files, of its script and of its group in W&B.
        published_model: the model of ``published.csv`` whose numbers stand beside ours.
        benchmarks: its columns, by name.
        tokens: its budgets.
        first: methods that are answered first, in all columns, before any other.
        rest: whether every other method of the registry follows.
        variants: rows that are no methods of the registry as they are.
        quick: methods of ``--quick``.
        quick_tokens: budgets of ``--quick``.
        model: the checkpoint unless one is given; None where none is bundled.
        data: the bundled data, a folder with a folder for each of ``bundled``, unless other data is
            given; None for each benchmark's own sample set.
        bundled: the columns on that data; () for all of ``benchmarks``.
        method_args: fields of methods that the whole table sets, as name=value.
        model_types: kinds of checkpoint, as ``model_type`` of their configuration, that it is for;
            empty for any.
    """

    name: str
    title: str
    published_model: str
    benchmarks: tuple[str, ...]
    tokens: tuple[int, ...]
    first: tuple[str, ...]
    rest: bool = True
    variants: tuple[Variant, ...] = ()
    quick: tuple[str, ...] = ()
    quick_tokens: tuple[int, ...] = ()
    model: str | None = None
    data: str | None = None
    bundled: tuple[str, ...] = ()
    method_args: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()

    @property
    def script(self) -> str:
        """The command that makes it."""
        return f"bash scripts/tables/{self.name}.sh"

    def quickly(self) -> Spec:
        """The same with few rows and budgets."""
        return replace(
            self, first=self.quick, rest=False, tokens=self.quick_tokens, variants=self.variants
        )
