"""Archives that are whole, broken or hostile."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from llava.data import unpack as unpacking
from llava.data.unpack import ArchiveError, Limits, unpack
from llava.eval.errors import EvalError

LIMITS = Limits(total=10_000_000)
FILES = {"set/a.jpg": b"a" * 1000, "set/deep/b.jpg": b"b" * 2000, "set/c.txt": b"c"}


def everything(path: PurePosixPath) -> str:
    return str(path)


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("set")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo("set")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


WRITERS = {"zip": write_zip, "tar.gz": write_tar}
both = pytest.mark.parametrize("kind", WRITERS)


def make(tmp_path: Path, kind: str, files: dict[str, bytes]) -> Path:
    return WRITERS[kind](tmp_path / f"x.{kind}", files)


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@both
def test_whole(tmp_path, kind):
    out = tmp_path / "out"
    written = unpack(make(tmp_path, kind, FILES), out, everything, LIMITS)
    assert tree(out) == FILES
    assert sorted(written) == sorted(out / name for name in FILES)


@both
def test_chosen_members_at_chosen_places(tmp_path, kind):
    out = tmp_path / "out"
    chosen = {"set/a.jpg": "val/1.jpg"}
    unpack(make(tmp_path, kind, FILES), out, lambda path: chosen.get(str(path)), LIMITS)
    assert tree(out) == {"val/1.jpg": FILES["set/a.jpg"]}


@both
@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "set/../../x", "..\\x", "C:\\x", "C:/x"]
)
def test_a_path_that_leaves_the_folder(tmp_path, kind, name):
    """The whole archive is refused, the good members before the bad one, too."""
    archive = make(tmp_path, kind, {**FILES, name: b"x"})
    with pytest.raises(ArchiveError, match="leaves the folder; nothing was unpacked"):
        unpack(archive, tmp_path / "out", everything, LIMITS)
    assert tree(tmp_path) == {archive.name: archive.read_bytes()}


def test_a_place_that_leaves_the_folder(tmp_path):
    with pytest.raises(ArchiveError, match="leaves"):
        unpack(write_zip(tmp_path / "x.zip", FILES), tmp_path / "out", lambda p: "../x", LIMITS)


def zip_with_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("set/link")
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return path


def tar_with(path: Path, kind: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("set/link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return path


def test_links_and_devices(tmp_path):
    archives = [zip_with_link(tmp_path / "x.zip")]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        archives.append(tar_with(tmp_path / f"{kind.decode()}.tar", kind))
    for archive in archives:
        with pytest.raises(ArchiveError, match="is a link"):
            unpack(archive, tmp_path / "out", everything, LIMITS)
    assert not (tmp_path / "out").exists()


def test_a_link_that_is_there_is_not_followed_out(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "set").symlink_to(elsewhere)
    with pytest.raises(EvalError, match="a link that leads out"):
        unpack(write_zip(tmp_path / "x.zip", FILES), out, everything, LIMITS)
    assert tree(elsewhere) == {}


def test_a_bomb_by_its_ratio(tmp_path):
    archive = write_zip(tmp_path / "x.zip", {"set/zeros": bytes(20 << 20)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(ArchiveError, match="grows from .* more than 200 times"):
        unpack(archive, tmp_path / "out", everything, Limits(total=1 << 30))
    assert not (tmp_path / "out").exists()


@both
def test_a_bomb_by_its_total(tmp_path, kind):
    archive = make(tmp_path, kind, {f"set/{i}": bytes(1000) for i in range(20)})
    with pytest.raises(ArchiveError, match="at most 10,000 were expected"):
        unpack(archive, tmp_path / "out", everything, Limits(total=10_000))
    assert not (tmp_path / "out").exists()


def test_a_size_that_lies(tmp_path):
    """The list of contents says ten bytes, the data has a thousand."""
    archive = write_zip(tmp_path / "x.zip", {"set/a": os.urandom(1000)})
    content = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        where = content.index(b"set/a") if mark == b"PK\x03\x04" else content.rindex(b"set/a")
        start = content.rindex(mark, 0, where) + offset
        content[start : start + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(ArchiveError):
        unpack(archive, tmp_path / "out", everything, LIMITS)
    assert tree(tmp_path / "out") == {}


def test_a_tar_cut_between_two_members(tmp_path):
    """Python's tarfile takes it for whole."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("set/a", "set/b"):
            info = tarfile.TarInfo(name)
            info.size = 512
            archive.addfile(info, io.BytesIO(bytes(512)))
    path.write_bytes(path.read_bytes()[:1024])
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["set/a"]
    with pytest.raises(ArchiveError, match="its end is missing"):
        unpack(path, tmp_path / "out", everything, LIMITS)


@both
def test_truncated(tmp_path, kind):
    archive = make(tmp_path, kind, {f"set/{i}": os.urandom(5000) for i in range(20)})
    whole = archive.read_bytes()
    for size in (len(whole) - 4, len(whole) // 2, 100, 0):
        archive.write_bytes(whole[:size])
        with pytest.raises(ArchiveError, match="was the download cut short"):
            unpack(archive, tmp_path / "out", everything, LIMITS)
    assert tree(tmp_path / "out") == {}


def test_a_changed_byte_is_caught_by_the_members_own_sum(tmp_path):
    archive = write_zip(tmp_path / "x.zip", {"set/a": os.urandom(5000)})
    content = bytearray(archive.read_bytes())
    content[2000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="no whole zip"):
        unpack(archive, tmp_path / "out", everything, LIMITS)
    assert tree(tmp_path / "out") == {}


def test_two_members_for_one_place(tmp_path):
    archive = write_zip(tmp_path / "x.zip", FILES)
    with pytest.raises(ArchiveError, match=r"'set/a.jpg' and 'set/deep/b.jpg' are both x.jpg"):
        unpack(archive, tmp_path / "out", lambda path: "x.jpg", LIMITS)


def test_no_archive_at_all(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ArchiveError, match="no whole zip or tar"):
        unpack(tmp_path / "x.zip", tmp_path / "out", everything, LIMITS)


@both
def test_killed_while_unpacking_then_again(tmp_path, kind, monkeypatch):
    """What was written before is whole and is not written again."""
    archive, out = make(tmp_path, kind, FILES), tmp_path / "out"
    copy, seen = unpacking._copy, []

    def dying(source, stream, member, path):
        seen.append(member.name)
        if len(seen) == 2:
            stream.write(b"half")
            raise KeyboardInterrupt
        copy(source, stream, member, path)

    monkeypatch.setattr(unpacking, "_copy", dying)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, out, everything, LIMITS)
    assert tree(out) == {"set/a.jpg": FILES["set/a.jpg"]}
    unpack(archive, out, everything, LIMITS)
    assert tree(out) == FILES
    assert seen == ["set/a.jpg", "set/deep/b.jpg", "set/deep/b.jpg", "set/c.txt"]


def test_a_full_disk_is_seen_before_the_first_byte(tmp_path, monkeypatch):
    usage = unpacking.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EvalError, match=r"unpacks to 3,001 bytes more and .* has 100 free"):
        unpack(write_zip(tmp_path / "x.zip", FILES), tmp_path / "out", everything, LIMITS)
    assert not (tmp_path / "out").exists()
