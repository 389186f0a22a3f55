"""Downloads from a server that is slow, breaks off, changes its mind or says something else."""

from __future__ import annotations

import hashlib
import json
import random
import socket
from pathlib import Path

import httpx
import pytest

from llava.data import fetch as fetching
from llava.data.fetch import Fetched, FetchError, fetch, remote_size, sums_of
from llava.eval.errors import EvalError
from tests.data.server import Answer, Site, tag_of

BODY = random.Random(0).randbytes(300_000)
PATH = "/data/file.bin"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


@pytest.fixture
def get(site: Site, client: httpx.Client, target: Path):
    """Fetches PATH to `target`; `waits` lists the pauses between attempts."""
    site.files[PATH] = BODY
    waits: list[float] = []

    def call(**options) -> Fetched:
        return fetch(site.base + PATH, target, client=client, wait=waits.append, **options)

    call.waits = waits
    return call


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "file.bin")


def test_right_answer(get, target, site):
    assert get(size=len(BODY)) == Fetched()
    assert target.read_bytes() == BODY
    assert leftovers(target.parent) == [] and get.waits == []
    assert site.gets(PATH)[0]["accept-encoding"] == "identity"


def test_slow_answer(get, target, site):
    site.next[PATH] = [Answer(pause=0.01)]
    get()
    assert target.read_bytes() == BODY and len(site.gets(PATH)) == 1


def test_a_silent_server_times_out_and_the_download_goes_on(get, target, site, client, monkeypatch):
    monkeypatch.setattr(client, "timeout", httpx.Timeout(0.2))
    site.next[PATH] = [Answer(pause=1.0)]
    get()
    assert target.read_bytes() == BODY and len(site.gets(PATH)) >= 2


def test_cut_in_the_middle_goes_on_where_it_stopped(get, target, site):
    site.next[PATH] = [Answer(cut=100_000), Answer(cut=50_000)]
    get()
    assert target.read_bytes() == BODY
    first, second, third = site.gets(PATH)
    assert "range" not in first
    assert (second["range"], third["range"]) == ("bytes=100000-", "bytes=150000-")
    assert second["if-range"] == tag_of(BODY)
    assert site.sent == len(BODY)  # no byte came twice
    assert get.waits == [1.0, 1.0]  # progress starts the count anew


def test_a_killed_run_goes_on_in_the_next(get, target, site):
    site.next[PATH] = [Answer(cut=100_000)]
    with pytest.raises(
        FetchError, match="100,000 bytes of it are kept; run the same command again"
    ):
        get(attempts=1)
    assert not target.exists()
    get()
    assert target.read_bytes() == BODY and site.sent == len(BODY)


def test_no_length_told_and_cut_is_caught_by_the_published_size(get, target, site):
    """Without Content-Length a cut looks like the end; the size that is known tells."""
    site.next[PATH] = [Answer(cut=100_000, length=False)]
    get(size=len(BODY))
    assert target.read_bytes() == BODY and site.gets(PATH)[1]["range"] == "bytes=100000-"


def test_a_server_that_ignores_range_starts_over(get, target, site):
    site.next[PATH] = [Answer(cut=100_000), Answer(ranges=False)]
    get()
    assert target.read_bytes() == BODY


def test_a_server_without_range_at_all(get, target, site):
    site.usual = Answer(status=416, ranges=False)
    site.next[PATH] = [Answer(cut=100_000), Answer(status=416, ranges=False), Answer(ranges=False)]
    get()
    assert target.read_bytes() == BODY
    assert "range" not in site.gets(PATH)[2]


def test_416_for_a_part_that_is_already_whole(get, target, site):
    target.with_name("file.bin.part").write_bytes(BODY)
    state = {"url": site.base + PATH, "validator": tag_of(BODY)}
    target.with_name("file.bin.part.json").write_text(json.dumps(state))
    get()
    assert target.read_bytes() == BODY and site.sent == 0


def test_a_file_that_changed_in_between_is_loaded_whole(get, target, site):
    site.next[PATH] = [Answer(cut=100_000)]
    with pytest.raises(FetchError):
        get(attempts=1)
    changed = BODY[::-1]
    site.files[PATH] = changed
    get()
    assert target.read_bytes() == changed


def test_a_changed_file_from_a_server_that_ignores_if_range(get, target, site):
    """It sends the rest of the new file, whose ETag tells."""
    changed = BODY[::-1]
    rest = Answer(
        status=206,
        body=changed[100_000:],
        ranges=False,
        headers={
            "ETag": tag_of(changed),
            "Content-Range": f"bytes 100000-{len(BODY) - 1}/{len(BODY)}",
        },
    )
    site.next[PATH] = [Answer(cut=100_000), rest, Answer(body=changed)]
    get()
    assert target.read_bytes() == changed


def test_without_a_version_only_a_summed_file_is_resumed(get, target, site):
    for summed, asked in ((True, "bytes=100000-"), (False, None)):
        site.asked.clear()
        site.next[PATH] = [Answer(cut=100_000, tag=False), Answer(tag=False)]
        get(summed=summed)
        assert target.read_bytes() == BODY
        assert site.gets(PATH)[1].get("range") == asked
        target.unlink()


def test_wrong_size_is_refused_before_the_download(get, target, site):
    with pytest.raises(FetchError, match="expected 5 bytes, the server has 300,000"):
        get(size=5)
    assert not target.exists() and not target.with_name("file.bin.part").exists()


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_passing_errors_are_tried_again(get, target, site, status):
    site.next[PATH] = [Answer(status=status), Answer(status=status)]
    get()
    assert target.read_bytes() == BODY and get.waits == [1.0, 2.0]


def test_the_wait_that_the_server_asks_for(get, site):
    site.next[PATH] = [Answer(status=503, headers={"Retry-After": "7"})]
    get()
    assert get.waits == [7.0]


def test_lasting_errors_end_it(get, target, site):
    site.usual = Answer(status=500)
    with pytest.raises(FetchError, match="answered 500, 5 attempts in vain"):
        get()
    assert len(site.gets(PATH)) == 5 and get.waits == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (403, "login, a form"),
        (401, "login, a form"),
        (404, "answered 404; the file may have moved"),
    ],
)
def test_final_errors_are_not_tried_again(get, site, status, text):
    site.usual = Answer(status=status)
    with pytest.raises(FetchError, match=text):
        get()
    assert len(site.gets(PATH)) == 1


def test_redirects_are_followed_and_the_hubs_sum_is_kept(get, target, site):
    site.files["/cdn/x"] = BODY
    sha = hashlib.sha256(BODY).hexdigest()
    headers = {"X-Linked-ETag": f'"{sha}"', "X-Repo-Commit": "41fcc42"}
    site.next[PATH] = [Answer(status=302, location="/cdn/x", headers=headers)]
    assert get() == Fetched(sha, "41fcc42")
    assert target.read_bytes() == BODY


def test_a_circle_of_redirects_ends(get, site):
    site.usual = Answer(status=302, location=PATH)
    with pytest.raises(FetchError, match="circle"):
        get()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b"<html>please log in</html>", headers={"Content-Type": "text/html"}),
        Answer(body=b"\n<!DOCTYPE html><p>quota exceeded"),
    ],
    ids=["by its type", "by its beginning"],
)
def test_a_page_in_place_of_the_file(get, target, site, answer):
    site.usual = answer
    with pytest.raises(FetchError, match="a web page came in place of the file"):
        get()
    assert not target.exists() and len(site.gets(PATH)) == 1
    site.usual = Answer()
    get()
    assert target.read_bytes() == BODY


def test_no_connection(tmp_path, client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    waits: list[float] = []
    with pytest.raises(FetchError, match="no connection"):
        fetch(f"http://127.0.0.1:{port}/x", tmp_path / "x", client=client, wait=waits.append)
    assert len(waits) == 1


def test_a_full_disk_is_seen_before_the_first_byte(get, target, site, monkeypatch):
    usage = fetching.shutil.disk_usage(target.parent)._replace(free=1000)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EvalError, match=r"needs 300,000 bytes more and .* has 1,000 free"):
        get()
    assert not target.with_name("file.bin.part").exists()


def test_remote_size(site, client):
    site.files[PATH] = BODY
    assert remote_size(site.base + PATH, client) == len(BODY)
    assert remote_size(site.base + "/nothing", client) is None


def test_sums(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sums_of(tmp_path / "abc") == {
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "md5": "900150983cd24fb0d6963f7d28e17f72",
    }
