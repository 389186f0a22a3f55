"""Small file operations that a crash or a second process cannot spoil."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, BinaryIO


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
    return stream


def glob_literal(name: str) -> str:
    """A file name with glob's special characters made plain."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
