"""Bring a benchmark's files into the layout that the benchmark reads.

python scripts/data/prepare.py NAME --root DIR     # fetch, check, unpack, convert
python scripts/data/prepare.py NAME --root DIR --check
python scripts/data/prepare.py --list
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llava.data import placing
from llava.data.fetch import FetchError, new_client
from llava.data.layout import check, the_split
from llava.data.registry import BY_HAND, SOURCES, get_source
from llava.data.sources import EVAL_ZIP, EVAL_ZIP_PAGE, Resource, Source
from llava.data.store import Store
from llava.eval.errors import EvalError, describe_os_error, run_main
from llava.eval.files import take_lock

DOWNLOADS = "downloads"
LOCK = ".prepare.lock"
EXIT_INCOMPLETE = 1  # --check: something is missing
Say = Callable[[str], None]


def human(size: int | None) -> str:
    """Bytes as text, in powers of ten."""
    if size is None:
        return "?"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Only one run at a time writes below ``root``; EvalError for a second one."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = take_lock(root / LOCK)
    except OSError as error:
        raise EvalError(f"cannot write to {root} ({error}); choose another --root") from None
    if lock is None:
        raise EvalError(
            f"another run is preparing data in {root}; wait for it, or choose another --root"
        )
    with lock:
        yield


def lacking(source: Source, folder: Path, split: str | None) -> list[Resource]:
    """The official files whose contents are not in the benchmark's folder yet."""
    return [
        resource
        for resource in source.resources_of(split)
        if not placing.is_placed(source, resource, folder, split)
    ]


def space_needed(
    lacking: Sequence[tuple[Source, Resource]], store: Store
) -> tuple[int, int, list[str]]:
    """Bytes to download, bytes to unpack, and the files whose size is not known."""
    files = {resource.file: resource for _, resource in lacking}
    loads = {name: store.bytes_to_fetch(resource) for name, resource in files.items()}
    sizes = {name: store.bytes_of(resource) for name, resource in files.items()}
    unpacked = sum(placing.bytes_unpacked(r, sizes[r.file]) for _, r in lacking)
    unknown = [name for name, load in loads.items() if load is None]
    return sum(load or 0 for load in loads.values()), unpacked, unknown


def require_space(
    lacking: Sequence[tuple[Source, Resource]], store: Store, root: Path, say: Say
) -> None:
    """Say how much disk is needed; EvalError where there is less."""
    load, unpacked, unknown = space_needed(lacking, store)
    free = shutil.disk_usage(root).free
    least = "at least " if unknown else "about "
    beside = f", and what {', '.join(unknown)} takes, whose size is not known" if unknown else ""
    say(
        f"needs {least}{human(load)} for downloads and {human(unpacked)} unpacked{beside}; "
        f"{human(free)} are free in {root}"
    )
    if free < load + unpacked:
        raise EvalError(
            f"{root} has {human(free)} free and {least}{human(load + unpacked)} are needed; free "
            "some, or choose another --root"
        )


def prepare(
    source: Source, root: Path, store: Store, split: str | None = None, say: Say = print
) -> None:
    """Make the benchmark's folder complete; what is there stays.

    Raises EvalError that says what to bring by hand where a file could not be fetched."""
    folder, split = root / source.name, the_split(source, split)
    title = source.title + (f", {split}" if split else "")
    todo = lacking(source, folder, split)
    say(f"{title}: {folder}")
    if todo:
        say(f"  terms: {source.terms} ({source.page})")
        if source.note:
            say(f"  note: {source.note}")
        require_space([(source, resource) for resource in todo], store, root, say)
    try:
        for resource in [r for r in todo if r.pictures is None]:
            placing.place(source, resource, store, folder, split)
        placing.add_questions(source, folder, split, store.folder, say)
        for resource in source.resources_of(split):
            if resource.pictures is None:
                continue
            if not placing.is_placed(source, resource, folder, split):
                placing.place(source, resource, store, folder, split)
    except FetchError as error:
        raise EvalError(f"{error}\n\n{by_hand(source, root, split, store.mirror)}") from None
    report = check(source, folder, split)
    if not report.complete:
        raise EvalError(f"{title} is not complete after all:\n{report}")
    say(f"  complete: DATA={folder} bash scripts/eval/{source.name}.sh")


def by_hand(source: Source, root: Path, split: str | None = None, mirror: str | None = None) -> str:
    """What to fetch on another machine, from where, and where to put it."""
    split, downloads = the_split(source, split), root / DOWNLOADS
    todo = [
        resource
        for resource in lacking(source, root / source.name, split)
        if not (downloads / resource.file).is_file()
    ]
    lines = [
        f"{source.title}: to bring by hand into {downloads}/, then run the same command again:"
    ]
    for resource in todo:
        size = resource.size or resource.about
        rough = "" if resource.size else "about "
        lines.append(f"  {resource.file}" + (f"  ({rough}{human(size)})" if size else ""))
        lines.append(f"    from {resource.address(mirror)}")
        for name in ("sha256", "md5"):
            if getattr(resource, name):
                lines.append(f"    {name} {getattr(resource, name)}")
    if not todo:
        lines.append("  nothing; every official file is there")
    if any(not (root / source.name / q.place).is_file() for q in source.questions_of(split)):
        lines.append(f"  {EVAL_ZIP}  (optional: LLaVA's own question files)")
        lines.append(f"    from {EVAL_ZIP_PAGE}")
    lines.append(f"  page: {source.page}")
    return "\n".join(lines)


def listing(mirror: str | None = None) -> str:
    """All benchmarks with their splits, terms, files, sizes and addresses."""
    lines = []
    for source in SOURCES.values():
        lines.append(f"{source.name}: {source.title}; {source.terms}; {source.page}")
        for resource in source.resources:
            size = human(resource.size or resource.about)
            rough = "" if resource.size else "~"
            split = f" [{', '.join(resource.splits)}]" if resource.splits else ""
            kind = "sha256" if resource.sha256 else "md5" if resource.md5 else "no published sum"
            lines.append(f"  {rough}{size:<9} {resource.address(mirror)}{split} ({kind})")
    lines += [f"{name}: {text}" for name, text in BY_HAND.items()]
    return "\n".join(lines)


def prepare_all(
    sources: Sequence[Source], root: Path, split: str | None, mirror: str | None, say: Say = print
) -> None:
    """Prepare several benchmarks; one that fails does not keep the next from being prepared."""
    failed: list[tuple[str, str]] = []
    with locked(root), new_client() as client:
        store = Store(root / DOWNLOADS, client, mirror, say)
        if len(sources) > 1:
            todo = [(s, r) for s in sources for r in lacking(s, root / s.name, split)]
            require_space(todo, store, root, say)
        for source in sources:
            try:
                prepare(source, root, store, split, say)
            except (EvalError, OSError) as error:
                if len(sources) == 1:
                    raise
                text = describe_os_error(error) if isinstance(error, OSError) else str(error)
                failed.append((source.name, text))
                say(f"  not done: {text}")
    if failed:
        names = ", ".join(name for name, _ in failed)
        raise EvalError(
            f"{len(failed)} of {len(sources)} could not be prepared: {names}; see above"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="prepare.py", description="Fetch, check, unpack and convert a benchmark's files."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SOURCES)}, or all")
    parser.add_argument("--root", type=Path, help="each benchmark gets a folder below it")
    parser.add_argument("--split", help="of benchmarks with several; the first is the default")
    parser.add_argument("--check", action="store_true", help="only say what is there; no network")
    parser.add_argument("--by-hand", action="store_true", help="only say what to bring by hand")
    parser.add_argument("--list", action="store_true", help="all files, sizes, terms, addresses")
    parser.add_argument("--mirror", help="base address that stands for all official hosts")
    args = parser.parse_args(argv)
    if args.list:
        print(listing(args.mirror))
        return 0
    names = list(SOURCES) if args.names == ["all"] else args.names
    if not names:
        raise EvalError(f"no benchmark named; known are {', '.join(SOURCES)}, or all")
    if args.root is None:
        raise EvalError("--root is missing: the folder that the benchmarks' folders go to")
    if args.split is not None and len(names) > 1:
        raise EvalError(f"--split {args.split} goes with one benchmark, got {len(names)}")
    sources = [get_source(name, args.split) for name in names]
    if args.by_hand:
        print("\n\n".join(by_hand(s, args.root, args.split, args.mirror) for s in sources))
        return 0
    if args.check:
        reports = [check(source, args.root / source.name, args.split) for source in sources]
        print("\n".join(map(str, reports)))
        return 0 if all(report.complete for report in reports) else EXIT_INCOMPLETE
    prepare_all(sources, args.root, args.split, args.mirror)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
