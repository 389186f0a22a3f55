"""One batch of answers, and its line on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.files import json_line

Row = dict[str, Any]


@dataclass(frozen=True)
class Answered:
    """One batch that is answered.

    Attributes:
        rows: of the answers file.
        seconds: that it took.
        margins: of each row the least distance between the two best tokens, where it is known.
            They stand beside the answers, not among them: the last bits of a logit depend on the
            number of threads, an answers file does not.
    """

    rows: list[Row]
    seconds: float
    margins: list[float | None]

    @property
    def failed(self) -> bool:
        """Whether one of the answers could not be given."""
        return any("error" in row["metadata"] for row in self.rows)

    def line(self, batch: int) -> str:
        """Its line in a partial file."""
        content = {"seconds": self.seconds, "rows": self.rows, "margins": self.margins}
        return json_line({"batch": batch, **content})


def margins_of(found: Sequence[float | None], rows: Sequence[Row]) -> list[float | None]:
    """Margins of all rows; unknown where a file does not say them all."""
    return list(found) if len(found) == len(rows) else [None] * len(rows)
