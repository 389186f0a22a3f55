"""Official files of the benchmarks with multiple choice, of MME and of MM-Vet."""

from __future__ import annotations

from llava.data import convert
from llava.data.sources import Questions, Resource, Source
from llava.eval.eval_mme import ALL_TASKS

_SQA = "https://raw.githubusercontent.com/lupantech/ScienceQA/main/data/scienceqa"
_HUB = "https://huggingface.co/datasets"
_SEED = f"{_HUB}/AILab-CVC/SEED-Bench/resolve/41fcc42395aa5693f5b197bf7b2b65ee33c2dde5"
_MMBENCH = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
_OPENCOMPASS = "https://opencompass.openxlab.space/utils"

_VLMEVALKIT = "open-compass/VLMEvalKit, vlmeval/dataset/image_mcq.py at 01424f99"

_MB, _GB = 10**6, 10**9


def _tsv(name: str, address: str, md5: str | None = None) -> Resource:
    """A split of MMBench is one file of its own name."""
    return Resource(
        f"{address}/{name}.tsv",
        f"{name}.tsv",
        place=f"{name}.tsv",
        md5=md5,
        sum_from=_VLMEVALKIT if md5 else "",
        splits=(name,),
    )


MME = Source(
    name="mme",
    title="MME",
    page="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
    terms="academic research only, no redistribution without Xiamen University's approval; "
    "commercial use is prohibited",
    resources=(
        Resource(
            f"{_HUB}/darkyarding/MME/resolve/main/MME_Benchmark_release_version.zip",
            "MME_Benchmark_release_version.zip",
            trees=(ALL_TASKS, "MME_Benchmark_release_version"),
        ),
    ),
    questions=(Questions("llava_mme.jsonl", "MME/llava_mme.jsonl", convert.mme),),
    images="MME_Benchmark_release_version",
    answers="MME_Benchmark_release_version",
    note="fetching it is agreeing to its terms; earlier it was given on application by e-mail, and "
    "the Hub may ask for a login again",
)

MMBENCH = Source(
    name="mmbench",
    title="MMBench",
    page="https://github.com/open-compass/MMBench",
    terms="see the page; pictures are of several public sets and of the Internet",
    splits=(
        "mmbench_dev_20230712",
        "mmbench_dev_en_20231003",
        "MMBench_DEV_EN",
        "mmbench_test_en_20231003",
        "MMBench_TEST_EN_legacy",
        "MMBench_TEST_EN",
    ),
    resources=(
        _tsv("mmbench_dev_20230712", _MMBENCH),
        _tsv("mmbench_dev_en_20231003", _MMBENCH),
        _tsv("MMBench_DEV_EN", f"{_OPENCOMPASS}/VLMEval", md5="b6caf1133a01c6bb705cf753bb527ed8"),
        _tsv("mmbench_test_en_20231003", _MMBENCH),
        _tsv("MMBench_TEST_EN_legacy", f"{_OPENCOMPASS}/MMBench"),
        _tsv("MMBench_TEST_EN", f"{_OPENCOMPASS}/VLMEval", md5="6939fadb0ce626fefc0bdc9c64efc528"),
    ),
)

MMBENCH_CN = Source(
    name="mmbench_cn",
    title="MMBench-CN",
    page=MMBENCH.page,
    terms=MMBENCH.terms,
    splits=(
        "mmbench_dev_cn_20231003",
        "MMBench_DEV_CN_legacy",
        "MMBench_DEV_CN",
        "mmbench_test_cn_20231003",
        "MMBench_TEST_CN",
    ),
    resources=(
        _tsv("mmbench_dev_cn_20231003", _MMBENCH),
        _tsv("MMBench_DEV_CN_legacy", f"{_OPENCOMPASS}/MMBench"),
        _tsv("MMBench_DEV_CN", f"{_OPENCOMPASS}/VLMEval", md5="08b8fc3324a5ed74155350f57be69fbd"),
        _tsv("mmbench_test_cn_20231003", _MMBENCH),
        _tsv("MMBench_TEST_CN", f"{_OPENCOMPASS}/VLMEval", md5="7e1239baf0ee4c8b513e19705a0f317e"),
    ),
)

SQA = Source(
    name="sqa",
    title="ScienceQA",
    page="https://github.com/lupantech/ScienceQA",
    terms="CC BY-NC-SA 4.0",
    resources=(
        Resource(f"{_SQA}/problems.json", "problems.json", place="problems.json"),
        Resource(f"{_SQA}/pid_splits.json", "pid_splits.json", place="pid_splits.json"),
        Resource(
            "https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip",
            "scienceqa_test.zip",
            pictures="images/test",
        ),
    ),
    questions=(
        Questions("llava_test_CQM-A.json", "scienceqa/llava_test_CQM-A.json", convert.scienceqa),
    ),
    images="images/test",
    answers="problems.json",
    note="the question file made here was not compared with LLaVA's own; take that one from "
    "eval.zip to ask in its very words",
)

SEED = Source(
    name="seed",
    title="SEED-Bench (pictures)",
    page="https://github.com/AILab-CVC/SEED-Bench/blob/main/DATASET.md",
    terms="CC BY-NC 4.0; pictures are of Conceptual Captions, for research",
    resources=(
        Resource(
            f"{_SEED}/SEED-Bench.json",
            "SEED-Bench.json",
            place="SEED-Bench.json",
            about=int(9.2 * _MB),
        ),
        Resource(
            f"{_SEED}/SEED-Bench-image.zip",
            "SEED-Bench-image.zip",
            pictures=".",
            about=int(1.7 * _GB),
        ),
    ),
    questions=(
        Questions("llava-seed-bench.jsonl", "seed_bench/llava-seed-bench.jsonl", convert.seed),
    ),
    images=".",
    answers="SEED-Bench.json",
    note="the questions about videos are left out",
)

MMVET = Source(
    name="mmvet",
    title="MM-Vet",
    page="https://github.com/yuweihao/MM-Vet",
    terms="see the page; the pictures' rights are their owners'",
    resources=(
        Resource(
            "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip",
            "mm-vet.zip",
            members=(("mm-vet.json", "mm-vet.json"),),
            trees=(("images",), "."),
        ),
    ),
    questions=(Questions("llava-mm-vet.jsonl", "mm-vet/llava-mm-vet.jsonl", convert.mmvet),),
    images="images",
)
