"""What is known of a benchmark's official files; the entries stand in `llava.data.registry`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

EVAL_ZIP = "eval.zip"
EVAL_ZIP_PAGE = (
    "https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy/view (Google Drive asks for "
    "a confirmation, so it is fetched in a browser)"
)


@dataclass(frozen=True)
class Resource:
    """One file at its official place.

    Attributes:
        url: its address.
        file: its name in the downloads folder; unique over all benchmarks unless it is one file.
        place: for a plain file, where it goes below the benchmark's folder.
        members: for an archive, (ending of a member's path, place below the benchmark's folder).
        pictures: for an archive of pictures, the folder of those that the questions ask about.
        trees: for an archive that is taken whole, (names of folders that are taken with all that is
            below them, where they go).
        size: bytes, where they are published; checked.
        about: bytes, as a rough guide where no size is published; not checked.
        share: of an archive's unpacked bytes, how much is taken; for the estimate of disk space.
        sha256, md5: published sums; None where there is none.
        sum_from: who published size and sums.
        splits: the splits that need it; empty for all.
    """

    url: str
    file: str
    place: str | None = None
    members: tuple[tuple[str, str], ...] = ()
    pictures: str | None = None
    trees: tuple[tuple[str, ...], str] | None = None
    size: int | None = None
    about: int | None = None
    share: float = 1.0
    sha256: str | None = None
    md5: str | None = None
    sum_from: str = ""
    splits: tuple[str, ...] = ()

    @property
    def summed(self) -> bool:
        """Whether a sum of it is published."""
        return self.sha256 is not None or self.md5 is not None

    @property
    def places(self) -> tuple[str, ...]:
        """The fixed places below the benchmark's folder that it fills; none for pictures."""
        fixed = tuple(place for _, place in self.members)
        return fixed if self.place is None else (*fixed, self.place)

    def address(self, mirror: str | None = None) -> str:
        """``url``, or the same path and query at a mirror that stands for every host."""
        if mirror is None:
            return self.url
        parts = urlsplit(self.url)
        query = f"?{parts.query}" if parts.query else ""
        return f"{mirror.rstrip('/')}{parts.path}{query}"


@dataclass(frozen=True)
class Questions:
    """A question file in LLaVA's format.

    Attributes:
        place: below the benchmark's folder.
        in_eval_zip: its path in LLaVA's eval.zip.
        make: makes it of the official files in the benchmark's folder; None where the official
            file is read as it is, so that LLaVA's may be missing.
    """

    place: str
    in_eval_zip: str
    make: Callable[[Path], bytes] | None = None
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A benchmark's files.

    Attributes:
        page: where its authors describe the files.
        terms: under which terms they give them, in short; the page counts.
        images, answers: pictures' folder and answers below the benchmark's folder, where the
            benchmark has no splits that say it.
        note: what a user must know.
    """

    name: str
    title: str
    page: str
    terms: str
    resources: tuple[Resource, ...]
    questions: tuple[Questions, ...] = ()
    splits: tuple[str, ...] = ()
    images: str = ""
    answers: str | None = None
    note: str = ""

    def resources_of(self, split: str | None) -> list[Resource]:
        """What a split needs (the first where none is named), pictures last."""
        split = split or (self.splits[0] if self.splits else None)
        chosen = [r for r in self.resources if not r.splits or split in r.splits]
        return sorted(chosen, key=lambda r: r.pictures is not None)

    def questions_of(self, split: str | None) -> list[Questions]:
        split = split or (self.splits[0] if self.splits else None)
        return [q for q in self.questions if not q.splits or split in q.splits]
