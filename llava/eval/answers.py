"""Answers on the disk: nothing answered is lost, nothing is answered twice, order is the file's.

While a run goes on, ``answers.jsonl.partial`` grows by one line a batch, flushed and synced: its
first line names the run's settings, every other line is
``{"batch": k, "seconds": s, "rows": [...], "margins": [...]}``.  A line that a crash left half
written is dropped.  When every batch is there, the answers are written in the question file's order
to a temporary file, which replaces ``answers.jsonl`` in one step; the settings lie beside it in
``answers.jsonl.settings.json``.  Processes that share a run write partial files of their own
(``answers.jsonl.partial.0of2``), and whoever opens the file next reads them all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llava.eval.answered import Answered, Row, margins_of
from llava.eval.errors import EvalError
from llava.eval.files import glob_literal, is_locked, json_line, take_lock, write_atomically
from llava.eval.samples import Sample, answer_key, batches_of, read_jsonl
from llava.eval.settings import RunSettings, describe_difference

VERSION = 1


class AnswerStore:
    """The answers of one run, open for adding; a context manager that holds the file's lock.

    Args:
        path: the finished answers file.
        settings: of the run; a file with other settings is refused.
        samples: all questions of the run, in order.
        part: name of this process among those that share the run ("0of2"); None if alone.
        overwrite: throw away what another run left there.
        lock: the file's lock where the caller holds it already (`take_answers`).

    Attributes:
        computed: answers added by this process.
        computed_by: rank -> answers in the parts of processes that were brought together now.

    Raises EvalError if another process has the file open, or if it belongs to another run.
    """

    def __init__(
        self,
        path: str | Path,
        settings: RunSettings,
        samples: Sequence[Sample],
        part: str | None = None,
        overwrite: bool = False,
        lock: BinaryIO | None = None,
    ) -> None:
        self.path = Path(path)
        self.settings = settings
        self.samples = list(samples)
        self.batches = batches_of(len(self.samples), settings.batch_size)
        self.partial = self._beside(".partial" + (f".{part}" if part else ""))
        self._is_part = part is not None
        self._done: dict[int, Answered] = {}
        self.computed = 0
        self.computed_by: dict[int, int] = {}
        self._stream: BinaryIO | None = None
        self._lock = None if lock else take_answers(self.path, part)
        try:
            if overwrite and not self._is_part:
                for file in [self.path, self._settings_file, *self._partials()]:
                    file.unlink(missing_ok=True)
            self._recover()
        except BaseException:
            self.close()
            raise

    # --- what there is -------------------------------------------------------------------

    @property
    def todo(self) -> list[int]:
        """Batches without an answer, or with one that failed and is worth another try."""
        return [k for k in range(len(self.batches)) if k not in self._done or self._done[k].failed]

    @property
    def missing(self) -> list[int]:
        """Batches without an answer."""
        return [k for k in range(len(self.batches)) if k not in self._done]

    @property
    def complete(self) -> bool:
        return len(self._done) == len(self.batches)

    @property
    def seconds(self) -> float:
        """Seconds that answering what is there took, over all the runs that did it."""
        return sum(done.seconds for done in self._done.values())

    def rows(self) -> list[Row]:
        """All rows that are there, in the question file's order."""
        return [row for k in sorted(self._done) for row in self._done[k].rows]

    def margins(self) -> list[float | None]:
        """Of all rows that are there, see `Answered`."""
        return [margin for k in sorted(self._done) for margin in self._done[k].margins]

    # --- adding --------------------------------------------------------------------------

    def append(
        self,
        batch: int,
        rows: Sequence[Row],
        seconds: float,
        margins: Sequence[float | None] | None = None,
    ) -> None:
        """Add the rows of one whole batch; on the disk when this returns.

        Raises EvalError when the disk is full: says what is kept and how to go on."""
        expected = [self.samples[i].key for i in self.batches[batch]]
        if [answer_key(row) for row in rows] != expected:
            raise AssertionError(f"batch {batch}: answers do not belong to its questions")
        if self._stream is None:
            self._stream = self._open_partial()
        end = self._stream.tell()
        answered = Answered(list(rows), round(seconds, 6), margins_of(margins or [], rows))
        try:
            self._write(self._stream, answered.line(batch).encode())
        except OSError as error:
            self._drop_after(end)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            kept = len(self.rows())
            raise EvalError(
                f"the disk is full while writing {self.partial}: {kept} of {len(self.samples)} "
                "answers are kept there; free some space and run the same command again to go on"
            ) from None
        self._done[batch] = answered
        self.computed += len(rows)

    @staticmethod
    def _write(stream: BinaryIO, data: bytes) -> None:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())

    def _drop_after(self, end: int) -> None:
        """Cut off what a failed write may have left; a later resume would drop it as well."""
        assert self._stream is not None
        with contextlib.suppress(OSError):  # closing flushes, and that is what failed
            self._stream.close()
        self._stream = None
        with contextlib.suppress(OSError):
            os.truncate(self.partial, end)

    def finish(self) -> list[Row]:
        """Put the complete answers in place, in order, in one step; returns the rows."""
        if self._is_part:
            raise AssertionError("a part of a run cannot finish it")
        if not self.complete:
            raise EvalError(
                f"{self.path}: {len(self.missing)} of {len(self.batches)} "
                "batches are not answered; run the same command again to go on"
            )
        rows = self.rows()
        if not (self.path.exists() and self._finished_is_current(rows)):
            seconds = [self._done[k].seconds for k in range(len(self.batches))]
            beside = {"batch_seconds": seconds, "margins": self.margins()}
            write_atomically(
                self._settings_file, json.dumps({**self._header(), **beside}, indent=1)
            )
            write_atomically(self.path, "".join(map(json_line, rows)))
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        for file in [*self._partials(), *self._beside_all(".tmp*")]:  # what a killed process left
            file.unlink(missing_ok=True)
        return rows

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._lock is not None:
            self._lock.close()  # releases it

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- files ---------------------------------------------------------------------------

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    @property
    def _settings_file(self) -> Path:
        return self._beside(".settings.json")

    def _beside_all(self, suffix: str) -> list[Path]:
        return sorted(self.path.parent.glob(glob_literal(self.path.name) + suffix))

    def _partials(self) -> list[Path]:
        names = {self._beside(".partial"), *self._beside_all(".partial.*of*")}
        return sorted(path for path in names if ".tmp" not in path.suffix and path.exists())

    def _header(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "settings_digest": self.settings.digest,
            "settings": self.settings.to_dict(),
            "num_samples": len(self.samples),
        }

    def _open_partial(self) -> BinaryIO:
        if not self.partial.exists():
            write_atomically(self.partial, json_line(self._header()))
        return self.partial.open("ab")

    # --- coming back ---------------------------------------------------------------------

    def _recover(self) -> None:
        if self.path.exists():
            self._read_finished()
        partials = self._partials()
        for file in partials:
            self._read_partial(file)
        if self._is_part or not partials or partials == [self.partial]:
            return
        # Several processes wrote a part each: bring them together before going on.
        lines = [json_line(self._header())]
        lines += [self._done[k].line(k) for k in sorted(self._done)]
        write_atomically(self.partial, "".join(lines))
        for file in partials:
            if file != self.partial:
                file.unlink()

    def _check_owner(self, header: Mapping[str, Any], file: Path) -> None:
        if header.get("settings_digest") != self.settings.digest:
            difference = describe_difference(header.get("settings", {}), self.settings.to_dict())
            raise EvalError(
                f"{file} belongs to another run ({difference or 'settings unknown'}); choose "
                "another place (--answers-file, OUT), use the same settings, or give --overwrite"
            )

    def _read_finished(self) -> None:
        try:
            header = json.loads(self._settings_file.read_bytes())
        except FileNotFoundError:
            raise EvalError(
                f"{self.path} belongs to another run: no {self._settings_file.name} beside it "
                "says whose; choose another place (--answers-file, OUT) or give --overwrite"
            ) from None
        self._check_owner(header, self.path)
        rows = [row for _, row in read_jsonl(self.path)]
        if len(rows) > len(self.samples):
            raise EvalError(
                f"{self.path} already holds {len(rows)} answers and this run asks for "
                f"{len(self.samples)}; ask for {len(rows)} (LIMIT, --limit), choose another "
                "place, or give --overwrite"
            )
        seconds, margins = header.get("batch_seconds", []), header.get("margins", [])
        for k, batch in enumerate(self.batches):
            part = rows[batch.start : batch.stop]
            if len(part) == len(batch):  # of a run with a smaller limit, whole batches stay
                known = margins_of(margins[batch.start : batch.stop], part)
                time = seconds[k] if k < len(seconds) else 0.0
                self._take(k, Answered(part, time, known), self.path)

    def _read_partial(self, file: Path) -> None:
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        try:
            records = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise EvalError(f"{file} is damaged ({error}); remove it to start afresh") from None
        if not records:
            raise EvalError(f"{file} is damaged (no header); remove it to start afresh")
        self._check_owner(records[0], file)
        if len(whole) < len(data) and file == self.partial:
            os.truncate(file, len(whole))
        for record in records[1:]:
            k, rows = record["batch"], record["rows"]
            if k >= len(self.batches) or len(rows) != len(self.batches[k]):
                if self._shorter(records[0]):
                    continue  # the last, smaller batch of a run with a smaller limit
                raise EvalError(
                    f"{file} belongs to a run over {records[0]['num_samples']} questions, this "
                    f"one has {len(self.samples)}; ask for as many, choose another place, or give "
                    "--overwrite"
                )
            known = margins_of(record.get("margins", []), rows)
            self._take(k, Answered(rows, record["seconds"], known), file)
        rank = re.search(r"\.partial\.(\d+)of\d+$", file.name)
        if rank is not None:
            self.computed_by[int(rank[1])] = sum(len(record["rows"]) for record in records[1:])

    def _shorter(self, header: Mapping[str, Any]) -> bool:
        return header["num_samples"] < len(self.samples)

    def _take(self, k: int, answered: Answered, file: Path) -> None:
        expected = [self.samples[i].key for i in self.batches[k]]
        if [answer_key(row) for row in answered.rows] != expected:
            raise EvalError(
                f"{file} answers other questions than this run asks (batch {k}, another chunk or "
                "question file?); choose another place or give --overwrite"
            )
        self._done[k] = answered

    def _finished_is_current(self, rows: Sequence[Row]) -> bool:
        return self.path.read_bytes() == "".join(map(json_line, rows)).encode()


def take_answers(path: str | Path, part: str | None = None) -> BinaryIO:
    """The lock of an answers file, or of a part of it; held until the stream is closed.

    Raises EvalError if another run has it, or one whose parent was killed still writes a part."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path.with_name(path.name + (f".{part}.lock" if part else ".lock")))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise EvalError(
            f"cannot write answers to {path}: {error.strerror}; choose another place"
        ) from None
    if lock is None:
        raise EvalError(
            f"another run is writing {path}; wait until it ends, or choose another file"
        )
    parts = path.parent.glob(f"{glob_literal(path.name)}.*of*.lock")
    if part is None and any(map(is_locked, parts)):
        lock.close()
        raise EvalError(
            f"a process of an earlier run is still writing {path}; wait until it ends, or "
            "choose another file"
        )
    return lock
