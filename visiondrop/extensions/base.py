"""What a method does to a model beside reducing tokens: masks, steering."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from visiondrop.decoder import Mechanism

__all__ = ["Extension"]


class Extension(ABC):
    """Hooks of a method's own on the one model that it is applied to.

    `attach` is called after the mechanism set its hooks, so that pre-hooks registered here run
    after the mechanism's; `detach` before they are removed, also after an exception. The state of
    the present forward is `mechanism.run`.
    """

    reads_prompt: ClassVar[bool] = True
    """Whether what it does to a token may depend on later ones. False lets a prompt's beginning be
    kept for other questions (`visiondrop.image_cache`).
    """

    masks_columns: ClassVar[bool] = False
    """Whether it hides entries of the KV cache by their column while decoding, so that none may be
    dropped by others.
    """

    @abstractmethod
    def attach(self, mechanism: Mechanism) -> None:
        """Set the hooks. Raises `ValueError` on a model that cannot carry them."""

    @abstractmethod
    def detach(self) -> None:
        """Remove the hooks."""
