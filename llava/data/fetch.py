"""Downloading one file over HTTP: resumed, retried, and never taken for whole when it is not.

A download grows in ``NAME.part``; ``NAME.part.json`` says of which address and version it is.  Only
a whole file gets its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from tqdm import tqdm

from llava.eval.errors import EvalError
from llava.eval.files import write_atomically

BLOCK = 1 << 20
ATTEMPTS = 5  # without a byte more in between
LONGEST_WAIT = 60.0  # seconds between two attempts
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_PAGE = (b"<!doctype html", b"<html")


class FetchError(EvalError):
    """A file could not be had; what was loaded of it is kept where it can still be used."""


class _Again(Exception):
    """This attempt failed; the next one may not.

    Attributes:
        after: seconds that the server asks to wait.
        weight: how many failures it counts as.
    """

    def __init__(self, why: str, after: float | None = None, weight: int = 1) -> None:
        super().__init__(why)
        self.after, self.weight = after, weight


@dataclass(frozen=True)
class Fetched:
    """What the server said of the file.

    Attributes:
        sha256: announced by the Hugging Face Hub for large files; None elsewhere.
        revision: the Hub's commit.
    """

    sha256: str | None = None
    revision: str | None = None


def new_client() -> httpx.Client:
    """Follows redirects; proxies are taken from the environment as usual."""
    return httpx.Client(
        follow_redirects=True,
        max_redirects=10,
        timeout=httpx.Timeout(60.0, connect=20.0),
        headers={"Accept-Encoding": "identity", "User-Agent": "visiondrop-data/1"},
    )


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    summed: bool = False,
    client: httpx.Client,
    attempts: int = ATTEMPTS,
    wait: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download ``url`` to ``target``, going on where an earlier attempt stopped.

    Args:
        size: bytes that it must have, where they are known.
        summed: whether its sum will be checked; only then is a download resumed from a server
            that does not say which version of the file it has.
        attempts: failures in a row, with no byte more in between, after which it gives up.

    Raises FetchError.
    """
    part = target.with_name(f"{target.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            fetched = _attempt(url, part, size, summed, client)
            break
        except _Again as again:
            failures = again.weight if _size(part) > before else failures + again.weight
            if failures >= attempts:
                kept = f"; {_size(part):,} bytes of it are kept" if _size(part) else ""
                raise FetchError(
                    f"{url}: {again}, {attempts} attempts in vain{kept}; run the same command "
                    "again to go on"
                ) from None
            wait(min(again.after or 2.0 ** (failures - 1), LONGEST_WAIT))
    os.replace(part, target)
    _state_file(part).unlink(missing_ok=True)
    return fetched


def _attempt(url: str, part: Path, size: int | None, summed: bool, client: httpx.Client) -> Fetched:
    have, validator = _resume_point(part, url, summed)
    if size is not None and have == size:
        return Fetched()
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and validator:
        headers["If-Range"] = validator
    try:
        with client.stream("GET", url, headers=headers) as response:
            return _receive(response, url, part, have, validator, size)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _Again(f"no connection ({error})", weight=3) from None
    except httpx.TooManyRedirects:
        raise FetchError(f"{url}: redirected in a circle; try again later, or --mirror") from None
    except httpx.TransportError as error:
        raise _Again(f"cut off ({type(error).__name__}: {error})") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise FetchError(f"{url}: no address that can be fetched ({error})") from None


def _receive(
    response: httpx.Response,
    url: str,
    part: Path,
    have: int,
    validator: str | None,
    size: int | None,
) -> Fetched:
    """Write the body behind the ``have`` bytes that are there, or from the start."""
    if response.status_code == 416:
        if have and _total(response) == have and _same_version(response, validator):
            return _announced(response)
        _drop(part)
        raise _Again(f"the server has no bytes from {have:,} on")
    _check_status(response, url)
    if response.status_code == 206:
        if _first_byte(response) != have or not _same_version(response, validator):
            _drop(part)
            raise _Again("the server sent another part than was asked for")
    else:
        have = 0
    total = _total(response)
    if size is not None and total is not None and total != size:
        raise FetchError(
            f"{url}: expected {size:,} bytes, the server has {total:,}; the file has changed, or "
            "this is not it. Compare with the benchmark's page, or bring the file by hand"
        )
    _require_room(part, (total or have) - have)
    _write_state(part, url, response)
    with part.open("r+b" if have else "wb") as stream:
        stream.seek(have)
        stream.truncate()
        with tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None
        ) as bar:
            first = have == 0
            # As it comes: what is gathered to larger blocks would be lost with the connection.
            for block in response.iter_raw():
                if first and block.lstrip()[:14].lower().startswith(_PAGE):
                    raise FetchError(_page_message(url))
                first = False
                stream.write(block)
                bar.update(len(block))
        stream.flush()
        os.fsync(stream.fileno())
    expected = size if total is None else total
    if expected is not None and _size(part) != expected:
        came = _size(part)
        if came > expected:
            _drop(part)
        raise _Again(f"{came:,} of {expected:,} bytes came")
    return _announced(response)


def remote_size(url: str, client: httpx.Client) -> int | None:
    """What the server says of the file's size; None where it does not."""
    try:
        response = client.head(url)
    except httpx.HTTPError:
        return None
    length = response.headers.get("content-length", "")
    return int(length) if response.status_code == 200 and length.isdigit() else None


def sums_of(path: Path) -> dict[str, str]:
    """The file's SHA-256 and MD5, hexadecimal, by name."""
    sums = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            for digest in sums.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in sums.items()}


# --- what a response says -----------------------------------------------------------------------


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in TRY_AGAIN:
        after = response.headers.get("retry-after", "")
        raise _Again(f"the server answered {status}", float(after) if after.isdigit() else None)
    if status in (401, 403):
        raise FetchError(
            f"{url}: the server refused it ({status}); it may want a login, a form or its terms "
            "agreed to in a browser. Get the file that way and bring it by hand"
        )
    if status not in (200, 206):
        raise FetchError(
            f"{url}: the server answered {status}; the file may have moved. Look at the "
            "benchmark's page, try --mirror, or bring the file by hand"
        )
    if response.url.scheme == "http" and any(r.url.scheme == "https" for r in response.history):
        raise FetchError(f"{url}: redirected from https to {response.url}, which anyone may change")
    if response.headers.get("content-type", "").startswith("text/html"):
        raise FetchError(_page_message(url))
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError(f"{url}: sent compressed although asked not to; bring the file by hand")


def _page_message(url: str) -> str:
    return (
        f"{url}: a web page came in place of the file (a login, a notice, an error?); open the "
        "address in a browser and bring the file by hand"
    )


def _total(response: httpx.Response) -> int | None:
    """Bytes of the whole file, where the response says so."""
    whole = response.headers.get("content-range", "").rpartition("/")[2]
    if whole.isdigit():
        return int(whole)
    length = response.headers.get("content-length", "")
    return int(length) if response.status_code == 200 and length.isdigit() else None


def _first_byte(response: httpx.Response) -> int | None:
    start = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _validator(response: httpx.Response) -> str | None:
    """What names this version of the file: a strong ETag, else the date of the last change."""
    tag = response.headers.get("etag", "")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("last-modified")


def _same_version(response: httpx.Response, validator: str | None) -> bool:
    now = _validator(response)
    return validator is None or now is None or now == validator


def _announced(response: httpx.Response) -> Fetched:
    """The Hub names a large file's SHA-256 and the commit on its way to the file."""
    sha256 = revision = None
    for answer in (*response.history, response):
        tag = answer.headers.get("x-linked-etag", "").strip('"')
        if len(tag) == 64 and all(c in "0123456789abcdef" for c in tag):
            sha256 = tag
        revision = answer.headers.get("x-repo-commit", revision)
    return Fetched(sha256, revision)


# --- what is there already ----------------------------------------------------------------------


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _state_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_state(part: Path, url: str, response: httpx.Response) -> None:
    state = {"url": url, "validator": _validator(response)}
    write_atomically(_state_file(part), json.dumps(state))


def _resume_point(part: Path, url: str, summed: bool) -> tuple[int, str | None]:
    """Bytes that are there, and of which version; (0, None) where they cannot be used."""
    try:
        state = json.loads(_state_file(part).read_bytes())
        known, validator = state["url"], state["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        known = validator = None
    if known != url or (validator is None and not summed):
        _drop(part)
        return 0, None
    return _size(part), validator


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def _require_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise EvalError(
            f"{path.name} needs {needed:,} bytes more and {path.parent} has {free:,} free; free "
            "some, or choose another --root"
        )
