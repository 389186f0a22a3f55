"""The downloads folder: what was fetched or brought by hand, and the sums of it.

``sums.json`` records every file's sum.  Where nobody published one, the first download's counts
from then on (trust on first use), and the record says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from llava.data.fetch import Fetched, FetchError, fetch, remote_size, sums_of
from llava.data.sources import Resource
from llava.eval.errors import EvalError
from llava.eval.files import write_atomically

LEDGER = "sums.json"
FIRST_USE = "the first download; nobody published a sum"


class Store:
    """Files by name in one folder.

    Args:
        mirror: base address that stands for every official host.
        say: is told what happens, line by line.
        get: fetches one file, as `llava.data.fetch.fetch`.
    """

    def __init__(
        self,
        folder: Path,
        client: httpx.Client,
        mirror: str | None = None,
        say: Callable[[str], None] = print,
        get: Callable[..., Fetched] = fetch,
    ) -> None:
        self.folder, self.mirror = folder, mirror
        self._client, self._say, self._get = client, say, get

    def path(self, resource: Resource) -> Path:
        return self.folder / resource.file

    def bytes_to_fetch(self, resource: Resource) -> int | None:
        """How much is still to be loaded; None where nobody says."""
        if self.path(resource).is_file():
            return 0
        whole = self.bytes_of(resource)
        part = self.path(resource).with_name(f"{resource.file}.part")
        have = part.stat().st_size if part.is_file() else 0
        return None if whole is None else max(whole - have, 0)

    def bytes_of(self, resource: Resource) -> int | None:
        """The file's size: on the disk, published, rough, or as the server says."""
        if self.path(resource).is_file():
            return self.path(resource).stat().st_size
        known = resource.size or resource.about
        return known or remote_size(resource.address(self.mirror), self._client)

    def obtain(self, resource: Resource) -> Path:
        """The file, fetched unless it is there, with its size and sums checked; FetchError."""
        path, fetched = self.path(resource), Fetched()
        if path.is_file():
            self._say(f"  {resource.file}: in {self.folder}")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            url = resource.address(self.mirror)
            self._say(f"  {resource.file}: from {url}")
            fetched = self._get(
                url, path, size=resource.size, summed=resource.summed, client=self._client
            )
        self._verify(resource, path, fetched)
        return path

    def reject(self, resource: Resource) -> Path:
        """Put a file aside that turned out to be no good, so that the next run fetches it anew."""
        path = self.path(resource)
        bad = path.with_name(f"{path.name}.bad")
        os.replace(path, bad)
        records = self._records()
        records.pop(resource.file, None)
        self._write(records)
        return bad

    def _verify(self, resource: Resource, path: Path, fetched: Fetched) -> None:
        records, status = self._records(), path.stat()
        record = records.get(resource.file, {})
        known = {"sha256": resource.sha256, "md5": resource.md5}
        source = resource.sum_from
        same_file = (record.get("size"), record.get("mtime_ns")) == (
            status.st_size,
            status.st_mtime_ns,
        )
        if same_file and all(value in (None, record.get(name)) for name, value in known.items()):
            return
        if not resource.summed:
            if fetched.sha256:
                known["sha256"], source = fetched.sha256, "the Hub, with the file"
            elif "sha256" in record:
                known["sha256"], source = record["sha256"], str(record.get("known_from"))
            else:
                source = FIRST_USE
        if resource.size is not None and status.st_size != resource.size:
            self._refuse(resource, "bytes", f"{resource.size:,}", f"{status.st_size:,}", source)
        sums = sums_of(path)
        for name, expected in known.items():
            if expected is not None and sums[name] != expected:
                self._refuse(resource, name, expected, sums[name], source)
        if source == FIRST_USE:
            self._say(
                f"  {resource.file}: nobody published a sum of it; its SHA-256 {sums['sha256']} is "
                f"kept in {self.folder / LEDGER} and counts from now on"
            )
        records[resource.file] = {
            "url": resource.address(self.mirror),
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            **sums,
            "known_from": source,
            "revision": fetched.revision or record.get("revision"),
        }
        self._write(records)

    def _refuse(self, resource: Resource, what: str, expected: str, got: str, source: str) -> None:
        records = self._records()
        bad = self.path(resource).with_name(f"{resource.file}.bad")
        os.replace(self.path(resource), bad)
        forget = ""
        if resource.file in records and not resource.summed:
            forget = f"; if the file has been renewed, remove its entry in {self.folder / LEDGER}"
        raise FetchError(
            f"{resource.file}: expected {what} {expected} (from {source}), got {got}; it was put "
            f"aside as {bad}. Run the same command again to fetch it anew{forget}"
        )

    def _records(self) -> dict[str, Any]:
        path = self.folder / LEDGER
        if not path.is_file():
            return {}
        try:
            records = json.loads(path.read_bytes())
            if not isinstance(records, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise EvalError(
                f"{path}: not the list of sums ({error}); remove it, and sums are taken anew"
            ) from None
        return records

    def _write(self, records: dict[str, Any]) -> None:
        write_atomically(self.folder / LEDGER, json.dumps(records, indent=2, sort_keys=True) + "\n")
