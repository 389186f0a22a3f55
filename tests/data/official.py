"""Miniature files in the official formats, at the paths of their official addresses.

Made of the bundled sample sets; the layouts inside the archives are those of the real ones, with
folders that nobody asked for.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from llava.data.convert import ROSETTA
from llava.data.registry import SOURCES
from llava.data.sources import Resource

SAMPLES = Path(__file__).resolve().parents[2] / "playground" / "data" / "eval"


def zip_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def pictures(name: str, folder: str, inside: str) -> dict[str, bytes]:
    """A sample set's pictures as members of an archive, and one that no question asks about."""
    root = SAMPLES / name / folder
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    found = {f"{inside}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in files}
    return {**found, f"{inside}/nobody_asks.jpg": b"x", f"__MACOSX/{inside}/._x.jpg": b"x"}


def sample(name: str, place: str) -> bytes:
    return (SAMPLES / name / place).read_bytes()


def rosetta() -> bytes:
    """OCR tokens by picture, read back out of the sample's questions: the last question's count."""
    tokens: dict[str, list[str]] = {}
    for line in sample("textvqa", "llava_textvqa_val_v051_ocr.jsonl").splitlines():
        row = json.loads(line)
        listed = row["text"].split("\n")[1].removeprefix("Reference OCR token:").strip()
        tokens[row["question_id"]] = listed.split(", ") if listed else []
    data = [{"image_id": name, "ocr_tokens": found} for name, found in tokens.items()]
    return json.dumps({"dataset_name": "textvqa", "data": data}).encode()


def contents() -> dict[str, bytes]:
    """By the file's name in the downloads folder."""
    coco = pictures("pope", "val2014", "val2014") | pictures("vqav2", "val2014", "val2014")
    mmvet = {
        "mm-vet/mm-vet.json": sample("mmvet", "mm-vet.json"),
        **pictures("mmvet", "images", "mm-vet/images"),
    }
    return {
        "TextVQA_0.5.1_val.json": sample("textvqa", "TextVQA_0.5.1_val.json"),
        ROSETTA: rosetta(),
        "train_val_images.zip": zip_of(pictures("textvqa", "train_images", "train_images")),
        "val2014.zip": zip_of(coco),
        **{
            f"coco_pope_{c}.json": sample("pope", f"coco/coco_pope_{c}.json")
            for c in ("adversarial", "popular", "random")
        },
        "v2_Questions_Val_mscoco.zip": zip_of(
            {
                name: sample("vqav2", name)
                for name in ("v2_OpenEnded_mscoco_val2014_questions.json",)
            }
        ),
        "v2_Annotations_Val_mscoco.zip": zip_of(
            {name: sample("vqav2", name) for name in ("v2_mscoco_val2014_annotations.json",)}
        ),
        "vizwiz_Annotations.zip": zip_of(
            {f"Annotations/{s}.json": sample("vizwiz", f"{s}.json") for s in ("val", "test")}
        ),
        "vizwiz_val.zip": zip_of(pictures("vizwiz", "val", "val")),
        "vizwiz_test.zip": zip_of(pictures("vizwiz", "test", "test")),
        "gqa_questions1.2.zip": zip_of(
            {
                "testdev_balanced_questions.json": sample(
                    "gqa", "data/testdev_balanced_questions.json"
                ),
                "train_all_questions/train_all_questions_0.json": b"{}",
            }
        ),
        "gqa_images.zip": zip_of(pictures("gqa", "data/images", "images")),
        "MME_Benchmark_release_version.zip": zip_of(
            pictures(
                "mme",
                "MME_Benchmark_release_version",
                "MME_Benchmark_release_version/MME_Benchmark",
            )
        ),
        "mmbench_dev_20230712.tsv": sample("mmbench", "mmbench_dev_20230712.tsv"),
        "mmbench_dev_cn_20231003.tsv": sample("mmbench_cn", "mmbench_dev_cn_20231003.tsv"),
        "problems.json": sample("sqa", "problems.json"),
        "pid_splits.json": sample("sqa", "pid_splits.json"),
        "scienceqa_test.zip": zip_of(pictures("sqa", "images/test", "test")),
        "SEED-Bench.json": sample("seed", "SEED-Bench.json"),
        "SEED-Bench-image.zip": zip_of(pictures("seed", "SEED-Bench-image", "SEED-Bench-image")),
        "mm-vet.zip": zip_of(mmvet),
    }


def resources() -> list[Resource]:
    return [resource for source in SOURCES.values() for resource in source.resources]
