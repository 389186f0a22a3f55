"""The settings of a run that its answers depend on, and their hash.

Two runs with equal settings give equal answers; an answers file with other settings belongs to
another run.  Where a checkpoint lies on the disk is not a setting, what it holds is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WHOLE_FILE_BYTES = 64 * 2**20  # larger files are known by size, head and tail
EDGE_BYTES = 2**20


def digest_of_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


HISTORY = (".jsonl", ".log", ".md")


def fingerprint(path: str | Path) -> str | None:
    """A hash of a checkpoint folder's files; None if ``path`` is no local folder (a hub id).

    What only tells of the training does not count (`HISTORY`: a log may grow). Files up to 64 MiB
    count whole, larger ones by size, first and last MiB.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        if file.suffix in HISTORY or file.name == "TRAINING.json":
            continue
        size = file.stat().st_size
        whole.update(f"{relative.as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_FILE_BYTES:
                whole.update(stream.read())
            else:
                whole.update(stream.read(EDGE_BYTES))
                stream.seek(-EDGE_BYTES, 2)
                whole.update(stream.read())
    return whole.hexdigest()


def file_digest(path: str | Path) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class RunSettings:
    """What the answers of a run depend on.

    Attributes:
        model: name of the checkpoint (last part of its path, or the hub id).
        model_fingerprint: hash of its files, None for a hub id.
        method: the method whole, as ``method.to_dict()``.
        questions: SHA-256 of the question file.
        seed: of sampling (with ``temperature`` > 0); a method's own seed is part of ``method``.
        blank_picture: every picture replaced by a uniform grey one.
        image_cache: whether questions go on from a kept prefill, where that may turn an answer:
            below float32. Left out of the hash where it is false.
        engine: what records or compiles the layers (`visiondrop.engine`), "none" for nothing, which
            the hash leaves out.
    """

    model: str
    model_fingerprint: str | None
    questions: str
    method: Mapping[str, Any]
    model_base: str | None = None
    batch_size: int = 1
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    device: str = "cpu"
    conv_mode: str = "vicuna_v1"
    image_aspect_ratio: str = "pad"
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128
    seed: int = 0
    blank_picture: bool = False
    quantisation: str | None = field(default=None)
    image_cache: bool = False
    engine: str = "none"

    def to_dict(self) -> dict[str, Any]:
        out = json.loads(json.dumps(asdict(self)))
        if not self.image_cache:
            del out["image_cache"]
        if self.engine == "none":
            del out["engine"]
        return out

    @property
    def digest(self) -> str:
        return digest_of_json(self.to_dict())


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """ "batch_size: 8 there, 16 here; ..." over the settings that differ."""
    parts = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            there, here = (json.dumps(s.get(name), ensure_ascii=False) for s in (old, new))
            parts.append(f"{name}: {_short(there)} there, {_short(here)} here")
    return "; ".join(parts)


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
