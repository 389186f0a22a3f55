"""What of a benchmark's layout is there, and whether the benchmark can be run on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llava.data.sources import Source
from llava.eval.benchmarks import BenchmarkFiles, get_benchmark
from llava.eval.errors import EvalError
from llava.eval.samples import SHOWN, Sample


@dataclass(frozen=True)
class Item:
    """One file or folder of the layout.

    Attributes:
        needed: whether the benchmark cannot do without it.
    """

    place: str
    there: bool
    detail: str = ""
    needed: bool = True


@dataclass(frozen=True)
class Report:
    """The state of one benchmark's folder.

    Attributes:
        problem: what the benchmark itself says of files that are all there; None if nothing.
    """

    folder: Path
    items: tuple[Item, ...]
    problem: str | None = None

    @property
    def complete(self) -> bool:
        return self.problem is None and all(item.there for item in self.items if item.needed)

    def __str__(self) -> str:
        lines = [f"{self.folder}: {'complete' if self.complete else 'not complete'}"]
        for item in self.items:
            state = "there" if item.there else "MISSING" if item.needed else "not there, optional"
            lines.append(
                f"  {state:<8} {item.place}" + (f"  ({item.detail})" if item.detail else "")
            )
        if self.problem is not None:
            lines.append(f"  PROBLEM  {self.problem}")
        return "\n".join(lines)


def the_split(source: Source, split: str | None) -> str | None:
    """The split asked for, or the benchmark's first; None where it has one."""
    return split or (source.splits[0] if source.splits else None)


def files_of(source: Source, folder: Path, split: str | None) -> BenchmarkFiles:
    """Where the files are or will be, whether they are there or not."""
    split = the_split(source, split)
    benchmark = get_benchmark(source.name, split)
    for known in getattr(benchmark, "split_files", ()):
        if split in (None, known.name):
            return known.find(folder)[0]
    if not source.questions:  # pictures and answers are in the question file
        return benchmark.files(folder)
    answers = None if source.answers is None else folder / source.answers
    return BenchmarkFiles(folder / source.questions[0].place, folder / source.images, answers)


def samples_of(source: Source, folder: Path, split: str | None) -> list[Sample]:
    """The benchmark's questions; EvalError while its files are not there."""
    files = files_of(source, folder, split)
    return get_benchmark(source.name, the_split(source, split)).read(files)


def missing_pictures(samples: Sequence[Sample], images: Path) -> list[str]:
    """Names of the pictures below ``images`` that are asked about and are not there."""
    names = dict.fromkeys(s.image for s in samples if s.image is not None)
    return [name for name in names if not (images / name).is_file()]


def check(source: Source, folder: Path, split: str | None = None) -> Report:
    """Look at the layout, then let the benchmark read and check it; nothing is written."""
    split = the_split(source, split)
    items = []
    for resource in source.resources_of(split):
        items += [_item(folder, place) for place in resource.places]
        if resource.trees is not None:
            names, target = resource.trees
            there = sum((folder / target / name).is_dir() for name in names)
            place = PurePosixPath(target, names[0] if len(names) == 1 else "")
            items.append(Item(f"{place}/", there == len(names), f"{there} of {len(names)} folders"))
    for questions in source.questions_of(split):
        items.append(_item(folder, questions.place, needed=questions.make is not None))
    problem = None
    if all(item.there for item in items if item.needed):
        try:
            samples = samples_of(source, folder, split)
            if source.questions or any(r.pictures for r in source.resources):
                items.append(_pictures(samples, files_of(source, folder, split).images, folder))
            if items[-1].there or not items[-1].needed:
                _let_benchmark_check(source, folder, split)
        except EvalError as error:
            problem = str(error)
    else:
        items += [
            Item(resource.pictures or resource.file, False, "not known before the questions are")
            for resource in source.resources_of(split)
            if resource.pictures is not None
        ]
    return Report(folder, tuple(items), problem)


def _let_benchmark_check(source: Source, folder: Path, split: str | None) -> None:
    benchmark = get_benchmark(source.name, split)
    files = benchmark.files(folder)
    samples = benchmark.read(files)
    benchmark.check(samples, files)
    benchmark.pictures(files).check(samples)


def _item(folder: Path, place: str, needed: bool = True) -> Item:
    path = folder / place
    if not path.is_file():
        return Item(place, False, needed=needed)
    size = path.stat().st_size
    return Item(place, size > 0, f"{size:,} bytes", needed)


def _pictures(samples: Sequence[Sample], images: Path, folder: Path) -> Item:
    missing = missing_pictures(samples, images)
    asked = len({s.image for s in samples if s.image is not None})
    detail = f"{asked - len(missing):,} of {asked:,} pictures"
    if missing:
        more = ", ..." if len(missing) > SHOWN else ""
        detail += f"; missing are {', '.join(missing[:SHOWN])}{more}"
    return Item(f"{images.relative_to(folder).as_posix()}/", not missing, detail)
