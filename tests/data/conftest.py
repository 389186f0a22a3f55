from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from llava.data.fetch import new_client
from tests.data.server import Site, serving


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is on this machine, whatever the environment says of the world outside."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def client() -> Iterator[httpx.Client]:
    with new_client() as opened:
        yield opened
