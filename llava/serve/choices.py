"""Which methods a model can be asked for, and which budgets: what a page or a chat may offer."""

from __future__ import annotations

from dataclasses import dataclass

from visiondrop import METHODS, Geometry, Reducer, build_method

__all__ = ["Choice", "choices_of", "default_tokens"]

LEFT_OUT = {"full"}
"""Names that nobody chooses as a reduction."""
BESIDE = {"frames", "text encoder"}
"""What a single picture and a LLaVA checkpoint do not bring."""


@dataclass(frozen=True)
class Choice:
    """A method as it can be had on one model.

    Attributes:
        name, title, where, signal: as in `visiondrop.METHODS`.
        least, most: budgets in true mean visual tokens; None where the method takes none.
    """

    name: str
    title: str
    where: str
    signal: str
    least: int | None
    most: int | None

    @property
    def budgeted(self) -> bool:
        """Whether a number of tokens can be asked for."""
        return self.least is not None

    def build(self, tokens: int, geometry: Geometry) -> Reducer:
        """The method at a budget. Raises `ValueError` naming the range."""
        if self.least is None or self.most is None:
            return build_method(self.name, geometry=geometry)
        if not self.least <= tokens <= self.most:
            raise ValueError(
                f"{self.title} at {tokens} tokens: on this model {self.least} to {self.most} are "
                "possible"
            )
        return build_method(self.name, tokens, geometry=geometry)


def choices_of(geometry: Geometry) -> dict[str, Choice]:
    """The methods that run on a model of these sizes, by name."""
    found = {}
    for name, cls in METHODS.items():
        if name in LEFT_OUT or set(cls.needs) & (geometry.lacks | BESIDE):
            continue
        if not possible(name, geometry.num_patches, geometry):
            continue
        least = least_tokens(name, geometry) if cls.budgeted() else None
        most = geometry.num_patches if cls.budgeted() else None
        found[name] = Choice(name, cls.title or name, cls.where, cls.signal, least, most)
    return found


def possible(name: str, tokens: int, geometry: Geometry) -> bool:
    """Whether the method can be made."""
    try:
        build_method(name, tokens, geometry=geometry)
    except (ValueError, TypeError):
        return False
    return True


def least_tokens(name: str, geometry: Geometry) -> int:
    """The smallest whole budget from which on all are possible, by bisection."""
    low, high = 0, geometry.num_patches  # low is not possible, high is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if possible(name, middle, geometry) else (middle, high)
    return high


def default_tokens(choice: Choice, geometry: Geometry) -> int:
    """A ninth of the picture, as in the papers (64 of 576, 320 of 2880), or what is possible."""
    wanted = geometry.num_patches // 9
    return min(max(wanted, choice.least or 1), choice.most or geometry.num_patches)
