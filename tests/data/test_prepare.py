"""Whole runs of the command against a mirror that serves miniature official files."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llava.data import prepare, unpack
from llava.data.prepare import main
from llava.data.registry import SOURCES
from llava.data.sources import Resource
from llava.eval.benchmarks import get_benchmark
from llava.eval.errors import EXIT_USAGE, run_main
from llava.eval.files import take_lock
from tests.data.official import SAMPLES, contents, resources, zip_of
from tests.data.server import Answer, Site

EVERY = [*((name, None) for name in SOURCES), ("vizwiz", "test")]


@pytest.fixture(scope="session")
def official() -> dict[str, bytes]:
    return contents()


@pytest.fixture
def mirror(site: Site, official: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Site:
    """Serves the miniature files; published sums and sizes are theirs."""

    def adapted(resource: Resource) -> Resource:
        content = official.get(resource.file)
        if content is None:
            return resource
        return replace(
            resource,
            about=len(content),
            size=None if resource.size is None else len(content),
            sha256=None if resource.sha256 is None else hashlib.sha256(content).hexdigest(),
        )

    for name, source in list(SOURCES.items()):
        changed = replace(source, resources=tuple(map(adapted, source.resources)))
        monkeypatch.setitem(SOURCES, name, changed)
    by_file = {urlsplit(r.url).path: r.file for r in resources()}
    site.files.update({p: official[f] for p, f in by_file.items() if f in official})
    return site


@pytest.fixture
def run(mirror: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command below ``tmp_path``; returns exit status and everything it said."""

    def call(*args: str, address: str | None = None) -> tuple[int, str]:
        options = ["--root", str(tmp_path), "--mirror", address or mirror.base]
        status = run_main(main, [*args, *options])
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def path_of(file: str) -> str:
    return next(urlsplit(r.url).path for r in resources() if r.file == file)


def read(name: str, folder: Path, split: str | None = None):
    """What a run does before the model: find, read, check, look for pictures."""
    benchmark = get_benchmark(name, split)
    files = benchmark.files(folder)
    samples = benchmark.read(files)
    benchmark.check(samples, files)
    benchmark.pictures(files).check(samples)
    return samples


@pytest.mark.parametrize(("name", "split"), EVERY)
def test_prepared_is_what_the_benchmark_reads(run, mirror, tmp_path, name, split):
    chosen = [] if split is None else ["--split", split]
    status, said = run(name, *chosen)
    assert status == 0, said
    assert SOURCES[name].terms in said and "needs " in said and "are free in" in said
    samples = read(name, tmp_path / name, split)
    theirs = read(name, SAMPLES / name, split)
    if name == "pope":  # numbered by category there
        texts = [sorted((s.category, s.image, s.prompt) for s in x) for x in (samples, theirs)]
        assert texts[0] == texts[1]
    elif name == "textvqa":  # one list of OCR tokens a picture there
        assert [s.question_id for s in samples] == [s.question_id for s in theirs]
    else:
        assert sorted(s.key for s in samples) == sorted(s.key for s in theirs)
    assert not list((tmp_path / name).rglob("nobody_asks*")) or name in ("mmvet", "mme")
    assert not list((tmp_path / name).rglob("*.part"))

    mirror.asked.clear()
    assert run(name, *chosen, "--check")[0] == 0
    assert run(name, *chosen)[0] == 0
    assert mirror.asked == []  # all is there, so nothing is asked for


def test_one_archive_for_two_benchmarks_is_fetched_once(run, mirror, tmp_path):
    assert run("pope", "vqav2")[0] == 0
    assert len(mirror.gets(path_of("val2014.zip"))) == 1
    asked = {sample.image for sample in read("pope", tmp_path / "pope")}
    assert {path.name for path in (tmp_path / "pope" / "val2014").iterdir()} == asked


def test_a_cut_download_goes_on_within_the_run(run, mirror, monkeypatch):
    monkeypatch.setattr("llava.data.fetch.time.sleep", lambda seconds: None)
    mirror.next[path_of("mm-vet.zip")] = [Answer(cut=1000)]
    assert run("mmvet")[0] == 0
    assert mirror.gets(path_of("mm-vet.zip"))[-1]["range"] == "bytes=1000-"


def test_a_wrong_sum_is_named_and_the_file_put_aside(run, mirror, tmp_path, official):
    good = official["v2_Annotations_Val_mscoco.zip"]
    bad = good[:-1] + bytes([good[-1] ^ 1])
    mirror.files[path_of("v2_Annotations_Val_mscoco.zip")] = bad
    status, said = run("vqav2")
    assert status == EXIT_USAGE
    for text in (hashlib.sha256(good).hexdigest(), hashlib.sha256(bad).hexdigest(), "ParlAI"):
        assert text in said
    assert (tmp_path / "downloads" / "v2_Annotations_Val_mscoco.zip.bad").read_bytes() == bad
    mirror.files[path_of("v2_Annotations_Val_mscoco.zip")] = good
    assert run("vqav2")[0] == 0


def test_without_a_published_sum_the_first_download_counts(run, mirror, tmp_path):
    status, said = run("mmbench")
    name = "mmbench_dev_20230712.tsv"
    record = json.loads((tmp_path / "downloads" / "sums.json").read_text())[name]
    assert status == 0 and "nobody published a sum" in said
    assert record["sha256"] == hashlib.sha256(mirror.files[path_of(name)]).hexdigest()
    assert "nobody published" in record["known_from"]
    (tmp_path / "downloads" / name).unlink()
    (tmp_path / "mmbench" / name).unlink()
    mirror.files[path_of(name)] += b" "
    status, said = run("mmbench")
    assert status == EXIT_USAGE and record["sha256"] in said and "remove its entry" in said


def test_the_hubs_sum_is_checked(run, mirror):
    path = path_of("SEED-Bench-image.zip")
    mirror.files["/cdn"] = mirror.files[path]
    headers = {"X-Linked-ETag": f'"{"0" * 64}"'}
    mirror.next[path] = [Answer(status=302, location="/cdn", headers=headers)]
    status, said = run("seed")
    assert status == EXIT_USAGE and "expected sha256 0000" in said and "from the Hub" in said


def test_a_truncated_archive_is_put_aside_and_fetched_anew(run, mirror, tmp_path):
    path = path_of("scienceqa_test.zip")
    whole = mirror.files[path]
    mirror.files[path] = whole[: len(whole) // 2]
    status, said = run("sqa")
    assert status == EXIT_USAGE and "cut short" in said and "scienceqa_test.zip.bad" in said
    mirror.files[path] = whole
    assert run("sqa")[0] == 0


def test_an_archive_with_a_path_that_leaves_the_folder(run, mirror, tmp_path):
    mirror.files[path_of("mm-vet.zip")] = zip_of({"images/../../../escaped.jpg": b"x"})
    status, said = run("mmvet")
    assert status == EXIT_USAGE and "leaves the folder" in said
    assert not list(tmp_path.parent.rglob("escaped.jpg"))


def test_an_archive_without_the_pictures(run, mirror):
    mirror.files[path_of("gqa_images.zip")] = zip_of({"images/other.jpg": b"x"})
    status, said = run("gqa")
    assert status == EXIT_USAGE and "lacks data/images/n16" in said and "more; is it the" in said


@pytest.mark.parametrize("name", ["gqa", "pope", "mmvet"])  # MM-Vet's sizes are not known
def test_without_a_network_it_says_what_to_bring(
    run, mirror, tmp_path, official, monkeypatch, name
):
    monkeypatch.setattr("llava.data.fetch.time.sleep", lambda seconds: None)
    closed = "http://127.0.0.1:1"
    status, said = run(name, address=closed)
    assert status == EXIT_USAGE and "no connection" in said
    unknown = [r.file for r in SOURCES[name].resources if (r.size or r.about) is None]
    told = f"and what {', '.join(unknown)} takes, whose size is not known"
    assert (told in said) == bool(unknown)
    assert f"into {tmp_path}/downloads/" in said and "drive.google.com" in said
    for resource in SOURCES[name].resources:
        assert resource.file in said and resource.address(closed) in said
        assert resource.sha256 is None or resource.sha256 in said
    assert run(name, "--by-hand", address=closed)[1].strip() in said
    for resource in SOURCES[name].resources:  # brought by hand
        (tmp_path / "downloads").mkdir(exist_ok=True)
        (tmp_path / "downloads" / resource.file).write_bytes(official[resource.file])
    assert run(name, address=closed)[0] == 0
    assert read(name, tmp_path / name)


def test_a_wrong_file_brought_by_hand(run, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "v2_Questions_Val_mscoco.zip").write_bytes(b"something else")
    status, said = run("vqav2")
    assert status == EXIT_USAGE and "expected bytes" in said and ".bad" in said


def test_llavas_own_question_file_goes_before_one_made_here(run, tmp_path):
    own = (SAMPLES / "pope" / "llava_pope_test.jsonl").read_bytes()
    (tmp_path / "downloads").mkdir()
    archive = zip_of({"eval/pope/llava_pope_test.jsonl": own, "eval/pope/answers/x.jsonl": b""})
    (tmp_path / "downloads" / "eval.zip").write_bytes(archive)
    status, said = run("pope")
    assert status == 0 and "LLaVA's own" in said
    assert (tmp_path / "pope" / "llava_pope_test.jsonl").read_bytes() == own


def test_check_of_empty_partial_and_complete(run, mirror, tmp_path):
    status, said = run("pope", "--check")
    assert status == prepare.EXIT_INCOMPLETE and "MISSING  coco/coco_pope_random.json" in said
    assert list(tmp_path.iterdir()) == []  # looking writes nothing
    assert run("pope")[0] == 0
    picture = sorted((tmp_path / "pope" / "val2014").iterdir())[0]
    content = picture.read_bytes()
    picture.unlink()
    status, said = run("pope", "--check")
    assert status == prepare.EXIT_INCOMPLETE
    assert f"29 of 30 pictures; missing are {picture.name}" in said
    picture.write_bytes(content)
    status, said = run("pope", "--check")
    assert status == 0 and "complete" in said and "MISSING" not in said
    random = tmp_path / "pope" / "coco" / "coco_pope_random.json"
    random.write_bytes(random.read_bytes()[:-200])
    status, said = run("pope", "--check")
    assert status == prepare.EXIT_INCOMPLETE and "PROBLEM" in said


def test_a_killed_run_is_ended_by_the_next(run, mirror, tmp_path):
    child = os.fork()
    if child == 0:
        copy, seen = unpack._copy, []

        def dying(source, stream, member, path):
            seen.append(member)
            if len(seen) == 10:
                stream.write(b"half")
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            copy(source, stream, member, path)

        unpack._copy = dying
        try:
            main(["pope", "--root", str(tmp_path), "--mirror", mirror.base])
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    folder = tmp_path / "pope" / "val2014"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jpg")}
    assert len(before) == 9 and len(list(folder.glob(".*.part"))) == 1
    assert run("pope")[0] == 0
    assert not list(folder.glob(".*")) and read("pope", tmp_path / "pope")
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jpg")}
    assert before.items() <= after.items()


def test_too_little_space_is_said_before_anything_is_fetched(run, mirror, official, monkeypatch):
    """Both archives, eight times the questions (of which 1 % are taken), 1 % of the pictures."""
    text, images = (len(official[f"gqa_{name}.zip"]) for name in ("questions1.2", "images"))
    needed = text + images + int(text * 8 * 0.01) + int(images * 0.01)
    usage = prepare.shutil.disk_usage("/")._replace(free=123)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage)
    status, said = run("gqa")
    assert status == EXIT_USAGE and "has 123 bytes free and about" in said
    assert f"{prepare.human(needed)} are needed" in said
    assert [method for method, *_ in mirror.asked if method == "GET"] == []


def test_a_second_run_into_one_folder_is_refused(run, mirror, tmp_path):
    held = take_lock(tmp_path / prepare.LOCK)
    assert held is not None
    with held:
        status, said = run("mmbench")
    assert status == EXIT_USAGE and "another run is preparing data" in said
    assert mirror.asked == []


def test_one_that_fails_does_not_stop_the_others(run, mirror, tmp_path):
    mirror.files.pop(path_of("mmbench_dev_20230712.tsv"))
    status, said = run("mmbench", "mmbench_cn")
    assert status == EXIT_USAGE and "1 of 2 could not be prepared: mmbench" in said
    assert read("mmbench_cn", tmp_path / "mmbench_cn")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nothing"], "unknown benchmark 'nothing'"),
        (["vqav2", "--split", "train"], "has no split 'train'"),
        (["pope", "--split", "val"], "it has one, leave --split out"),
        (["pope", "gqa", "--split", "val"], "goes with one benchmark, got 2"),
        ([], "no benchmark named"),
    ],
)
def test_bad_input(run, args, text):
    status, said = run(*args)
    assert status == EXIT_USAGE and text in said


def test_list(run):
    status, said = run("--list")
    assert status == 0 and all(f"{name}: " in said for name in SOURCES)


def test_a_root_that_cannot_be_written_to(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    assert run_main(main, ["mmvet", "--root", str(tmp_path / "file" / "x")]) == EXIT_USAGE
    assert "choose another --root" in capsys.readouterr().err
