"""Where the pictures of a benchmark are: in a folder, or wherever else a benchmark keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from llava.eval.samples import Sample, check_images

GREY = (127, 127, 127)  # what a blanked-out picture shows


class Pictures(Protocol):
    """Pictures by the name that samples give them; copied to worker processes."""

    def check(self, samples: Sequence[Sample]) -> None:
        """Raise EvalError unless every sample's picture is there; called before any compute."""

    def find(self, name: str) -> Path | BinaryIO:
        """The picture's file, or its bytes; OSError or ValueError where it cannot be had."""


class Folder:
    """Files below a folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def check(self, samples: Sequence[Sample]) -> None:
        check_images(samples, self.path)

    def find(self, name: str) -> Path:
        return self.path / name
