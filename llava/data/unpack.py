"""Unpacking zip and tar archives that may be broken or hostile.

Nothing is written outside of the target folder, no link is made or followed out of it, and no more
bytes than agreed.  Every file appears whole or not at all, so that a killed run goes on.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from llava.eval.errors import EvalError

BLOCK = 1 << 20
Choose = Callable[[PurePosixPath], str | None]
"""A member's path -> its place below the target folder, or None to leave it out."""


class ArchiveError(EvalError):
    """The archive is broken or does what no benchmark's archive does."""


@dataclass(frozen=True)
class Limits:
    """What is taken of an archive at most.

    Attributes:
        total: bytes, unpacked.
        ratio: of a member's unpacked to its packed bytes, for members over ``from_bytes``.
    """

    total: int
    ratio: float = 200.0
    from_bytes: int = 16 << 20


@dataclass(frozen=True)
class _Member:
    """One file that will be taken."""

    name: str
    place: str
    size: int
    packed: int | None  # bytes in the archive; None for tar
    handle: zipfile.ZipInfo | tarfile.TarInfo


def unpack(archive: Path, folder: Path, choose: Choose, limits: Limits) -> list[Path]:
    """Write the chosen members below ``folder``; returns their paths.

    The whole list of contents is checked before anything is written.  A file that is there with
    the right number of bytes is left alone.

    Raises ArchiveError that names archive and member.
    """
    with _broken(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                members = _plan(archive, _zip_members(archive, opened, choose), folder, limits)
                return _write(archive, members, folder, lambda m: opened.open(m.handle))  # type: ignore[arg-type]
        with tarfile.open(archive) as tar:
            members = _plan(archive, _tar_members(archive, tar, choose), folder, limits)
            return _write(archive, members, folder, lambda m: tar.extractfile(m.handle))  # type: ignore[arg-type]


@contextmanager
def _broken(archive: Path) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,  # what zipfile raises for a compression that it does not know
    ) as error:
        raise ArchiveError(
            f"{archive}: no whole zip or tar archive ({error}); was the download cut short?"
        ) from None


def _zip_members(archive: Path, opened: zipfile.ZipFile, choose: Choose) -> Iterator[_Member]:
    for info in opened.infolist():
        path = _checked(archive, info.orig_filename)
        place = None if info.is_dir() else choose(path)
        if place is None:
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArchiveError(
                f"{archive}: member {info.filename!r} is a link; nothing was unpacked"
            )
        if info.flag_bits & 1:
            raise ArchiveError(f"{archive}: member {info.filename!r} is encrypted")
        yield _Member(info.filename, place, info.file_size, info.compress_size, info)


def _tar_members(archive: Path, opened: tarfile.TarFile, choose: Choose) -> Iterator[_Member]:
    for info in opened:
        path = _checked(archive, info.name)
        place = None if info.isdir() else choose(path)
        if place is None:
            continue
        if not info.isreg():
            raise ArchiveError(
                f"{archive}: member {info.name!r} is a link or a device; nothing was unpacked"
            )
        yield _Member(info.name, place, info.size, None, info)
    _require_end(opened)


def _require_end(opened: tarfile.TarFile) -> None:
    """An archive that was cut between two members looks whole but for the zeros at its end."""
    stream = opened.fileobj
    assert stream is not None, "opened for reading"
    stream.seek(opened.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("its end is missing")
    while stream.read(BLOCK):  # a compressed stream checks its own sum at its end
        pass


def _checked(archive: Path, name: str) -> PurePosixPath:
    """A member's path; ArchiveError where it would leave the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = len(name) > 1 and name[1] == ":"
    if path.is_absolute() or drive or ".." in path.parts or "\0" in name or not path.parts:
        if name in (".", "./"):
            return path
        raise ArchiveError(
            f"{archive}: member {name!r} leaves the folder; nothing was unpacked. Fetch the "
            "archive from its official place"
        )
    return path


def _plan(archive: Path, members: Iterator[_Member], folder: Path, limits: Limits) -> list[_Member]:
    """All members that are taken; ArchiveError for too many bytes or two at one place."""
    planned: dict[str, _Member] = {}
    total = 0
    for member in members:
        # The place is made of names in the archive, so it is checked like one.
        place = str(_checked(archive, member.place))
        if place in planned:
            raise ArchiveError(
                f"{archive}: members {planned[place].name!r} and {member.name!r} are both {place}"
            )
        total += member.size
        if total > limits.total:
            raise ArchiveError(
                f"{archive}: unpacks to {total:,} bytes or more, at most {limits.total:,} were "
                f"expected (member {member.name!r}); nothing was unpacked"
            )
        packed = member.size if member.packed is None else max(member.packed, 1)
        if member.size > max(limits.from_bytes, limits.ratio * packed):
            raise ArchiveError(
                f"{archive}: member {member.name!r} grows from {packed:,} to {member.size:,} "
                f"bytes, more than {limits.ratio:g} times; nothing was unpacked"
            )
        planned[place] = member
    return [replace(m, place=place) for place, m in planned.items()]


def _write(
    archive: Path,
    members: list[_Member],
    folder: Path,
    open_member: Callable[[_Member], IO[bytes] | None],
) -> list[Path]:
    missing = [m for m in members if not _there(folder / m.place, m.size)]
    needed, free = sum(m.size for m in missing), _free(folder)
    if free < needed:
        raise EvalError(
            f"{archive.name} unpacks to {needed:,} bytes more and {folder} has {free:,} free; "
            "free some, or choose another --root"
        )
    for member in tqdm(missing, desc=f"unpack {archive.name}", unit="file", disable=None):
        target = folder / member.place
        _make_parent(target, folder)
        temporary = target.with_name(f".{target.name}.part")
        temporary.unlink(missing_ok=True)  # of a run that was killed
        try:
            source = open_member(member)
            assert source is not None, "a regular file"
            with source, temporary.open("xb") as stream:
                _copy(source, stream, member, archive)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return [folder / member.place for member in members]


def _copy(source: IO[bytes], stream: IO[bytes], member: _Member, archive: Path) -> None:
    written = 0
    while block := source.read(BLOCK):
        written += len(block)
        if written > member.size:
            break
        stream.write(block)
    if written != member.size:
        raise ArchiveError(
            f"{archive}: member {member.name!r} has another size than its {member.size:,} bytes; "
            "the archive is broken"
        )


def _there(path: Path, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size


def _make_parent(target: Path, folder: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise EvalError(
            f"{target.parent} is a link that leads out of {folder}; remove it or choose another "
            "--root"
        )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
