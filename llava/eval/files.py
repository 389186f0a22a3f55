"""Small file operations that a crash or a second process cannot spoil."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

_locks: WeakSet[BinaryIO] = WeakSet()


def _let_go_of_locks() -> None:
    """A forked process (one that prepares pictures) would hold its parent's locks beyond its death:
    here it closes what it was handed down."""
    for stream in list(_locks):
        stream.close()


os.register_at_fork(after_in_child=_let_go_of_locks)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def take_lock(path: Path) -> BinaryIO | None:
    """Lock a file for this process until the stream is closed; None if another one holds it."""
    stream = path.open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    _locks.add(stream)
    return stream


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of that file."""
    lock = take_lock(path)
    if lock is not None:
        lock.close()
    return lock is None


def glob_literal(name: str) -> str:
    """A file name with glob's special characters made plain."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
