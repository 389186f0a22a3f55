"""A small web server on this machine that answers rightly, or wrongly on demand."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Answer:
    """How one request is answered.

    Attributes:
        cut: the connection breaks after so many bytes of the body.
        ranges: whether Range is heeded.
        tag: whether there is an ETag (of the body's content).
        length: whether Content-Length is told.
        blocks: seconds to wait before each of ten parts of the body.
    """

    status: int = 200
    body: bytes | None = None
    cut: int | None = None
    ranges: bool = True
    tag: bool = True
    length: bool = True
    location: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0


@dataclass
class Site:
    """Files by path, and answers for the next requests of a path; then it answers rightly."""

    files: dict[str, bytes] = field(default_factory=dict)
    next: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    usual: Answer = Answer()
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0
    base: str = ""

    def gets(self, path: str) -> list[dict[str, str]]:
        """Headers of every GET of a path, in order."""
        return [
            headers for method, where, headers in self.asked if (method, where) == ("GET", path)
        ]


def tag_of(body: bytes) -> str:
    return f'"{hashlib.sha1(body).hexdigest()}"'


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            asked = {name.lower(): value for name, value in self.headers.items()}
            site.asked.append((self.command, self.path, asked))
            answer = site.next[path].pop(0) if with_body and site.next[path] else site.usual
            body = answer.body if answer.body is not None else site.files.get(path)
            status, headers = answer.status, dict(answer.headers)
            if answer.location is not None:
                headers["Location"], body = answer.location, b""
            if body is None:
                status, body = 404, b"not here"
            if answer.tag:
                headers.setdefault("ETag", tag_of(body))
            wanted = asked.get("range") if answer.ranges and status == 200 else None
            if asked.get("if-range") not in (None, headers.get("ETag")):
                wanted = None
            if wanted is not None:
                start, whole = int(wanted.removeprefix("bytes=").rstrip("-")), len(body)
                if start >= whole:
                    status, body = 416, b""
                    headers["Content-Range"] = f"bytes */{whole}"
                else:
                    status, body = 206, body[start:]
                    headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if answer.length:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if with_body:
                self._send(body, answer)

        def _send(self, body: bytes, answer: Answer) -> None:
            part = body if answer.cut is None else body[: answer.cut]
            step = max(len(part) // 10, 1) if answer.pause else max(len(part), 1)
            try:
                for i in range(0, len(part), step):
                    time.sleep(answer.pause)
                    self.wfile.write(part[i : i + step])
                    site.sent += len(part[i : i + step])
            except OSError:  # the other side has gone away
                self.close_connection = True
            if answer.cut is not None:
                self.close_connection = True
                self.wfile.flush()

    return Handler


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.base = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
