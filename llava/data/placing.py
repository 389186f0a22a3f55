"""From downloads to a benchmark's folder: copying, unpacking, LLaVA's question files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from llava.data.layout import files_of, missing_pictures, samples_of
from llava.data.sources import EVAL_ZIP, Questions, Resource, Source
from llava.data.store import Store
from llava.data.unpack import ArchiveError, Choose, Limits, unpack
from llava.eval.errors import EvalError
from llava.eval.files import write_atomically
from llava.eval.samples import SHOWN

TEXT_GROWS = 8  # how much a zip of text grows, for the estimate
GROWTH = 50  # how much an archive may grow in all
LEAST_TOTAL = 64 << 20  # bytes that any archive may unpack to


def is_placed(source: Source, resource: Resource, folder: Path, split: str | None) -> bool:
    """Whether all that a file is fetched for is in the benchmark's folder."""
    if not all(_filled(folder / place) for place in resource.places):
        return False
    if resource.pictures is None and resource.trees is None:
        return True
    try:
        samples = samples_of(source, folder, split)
    except EvalError:
        return False
    return not missing_pictures(samples, files_of(source, folder, split).images)


def bytes_unpacked(resource: Resource, size: int | None) -> int:
    """About how much a file of that size adds to the benchmark's folder."""
    grows = TEXT_GROWS if resource.members and resource.trees is None else 1
    return int((size or 0) * resource.share * grows)


def place(
    source: Source, resource: Resource, store: Store, folder: Path, split: str | None
) -> None:
    """Put a file's contents where the benchmark looks for them."""
    path = store.obtain(resource)
    if resource.place is not None:
        copy(path, folder / resource.place)
        return
    wanted: list[str] = []
    if resource.pictures is not None:
        images = files_of(source, folder, split).images
        wanted = missing_pictures(samples_of(source, folder, split), images)
    limits = Limits(total=max(GROWTH * path.stat().st_size, LEAST_TOTAL))
    try:
        written = unpack(path, folder, choose(resource, wanted), limits)
        lacking = _lacking(resource, wanted, written, folder)
    except ArchiveError as error:
        bad = store.reject(resource)
        raise EvalError(
            f"{error} It was put aside as {bad}; run the same command again to fetch it anew"
        ) from None
    if lacking:
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise EvalError(
            f"{path} lacks {', '.join(lacking[:SHOWN])}{more}; is it the right archive? It should "
            f"be that of {resource.url}"
        )


def choose(resource: Resource, wanted: list[str]) -> Choose:
    """Which members of an archive are taken, and where they go."""
    fixed = [(PurePosixPath(ending).parts, place) for ending, place in resource.members]
    names = set(wanted)
    depths = sorted({len(PurePosixPath(name).parts) for name in names}, reverse=True)
    # Where names are unique, an archive may have them without their folder.
    by_last = {PurePosixPath(name).name: name for name in names}
    by_last = by_last if len(by_last) == len(names) else {}

    def chosen(path: PurePosixPath) -> str | None:
        parts = path.parts
        if "__MACOSX" in parts or path.name.startswith("._"):
            return None
        for ending, place in fixed:
            if parts[-len(ending) :] == ending:
                return place
        if resource.trees is not None:
            roots, target = resource.trees
            for i, part in enumerate(parts[:-1]):
                if part in roots:
                    return str(PurePosixPath(target, *parts[i:]))
        for depth in depths:
            if "/".join(parts[-depth:]) in names:
                return f"{resource.pictures}/{'/'.join(parts[-depth:])}"
        if path.name in by_last:
            return f"{resource.pictures}/{by_last[path.name]}"
        return None

    return chosen


def _lacking(resource: Resource, wanted: list[str], written: list[Path], folder: Path) -> list[str]:
    expected = [f"{resource.pictures}/{name}" for name in wanted]
    expected += [place for _, place in resource.members]
    there = {os.path.normpath(path) for path in written}
    missing = [place for place in expected if os.path.normpath(folder / place) not in there]
    if resource.trees is not None and not written:
        missing.append(f"folders {', '.join(resource.trees[0])}")
    return missing


def add_questions(
    source: Source,
    folder: Path,
    split: str | None,
    downloads: Path,
    say: Callable[[str], None],
) -> None:
    """Write the question files that are missing: LLaVA's own out of eval.zip, or made here."""
    for questions in source.questions_of(split):
        if _filled(folder / questions.place):
            continue
        if (downloads / EVAL_ZIP).is_file() and _from_eval_zip(questions, downloads, folder):
            say(f"  {questions.place}: LLaVA's own, from {downloads / EVAL_ZIP}")
        elif questions.make is not None:
            write_atomically(folder / questions.place, questions.make(folder))
            say(f"  {questions.place}: made of the official files, in LLaVA's format")


def _from_eval_zip(questions: Questions, downloads: Path, folder: Path) -> bool:
    archive = downloads / EVAL_ZIP
    resource = Resource("", EVAL_ZIP, members=((questions.in_eval_zip, questions.place),))
    limits = Limits(total=max(GROWTH * archive.stat().st_size, LEAST_TOTAL))
    try:
        return bool(unpack(archive, folder, choose(resource, []), limits))
    except ArchiveError as error:
        raise EvalError(f"{error} Bring LLaVA's {EVAL_ZIP} again, or remove it") from None


def copy(path: Path, target: Path) -> None:
    """Copy a file so that it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp{os.getpid()}")
    try:
        shutil.copyfile(path, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
