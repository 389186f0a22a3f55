"""Official files of the benchmarks with short answers."""

from __future__ import annotations

from llava.data import convert
from llava.data.sources import Questions, Resource, Source

_COCO = "http://images.cocodataset.org/zips"
_VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa"
_VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final"
_GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"
_POPE = "https://raw.githubusercontent.com/AoiDragon/POPE/e3e39262c85a6a83f26cf5094022a782cb0df58d"

_TFDS = "tensorflow/datasets, url_checksums/coco.txt"
_PARLAI = "facebookresearch/ParlAI, parlai/tasks/vqa_v2/build.py"

_MB, _GB = 10**6, 10**9


def _val2014(share: float, splits: tuple[str, ...] = ()) -> Resource:
    return Resource(
        f"{_COCO}/val2014.zip",
        "val2014.zip",
        pictures="val2014",
        size=6_645_013_297,
        share=share,
        sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
        sum_from=_TFDS,
        splits=splits,
    )


TEXTVQA = Source(
    name="textvqa",
    title="TextVQA",
    page="https://textvqa.org/dataset",
    terms="annotations CC BY 4.0; pictures are Open Images' (CC BY 2.0)",
    resources=(
        Resource(
            f"{_TEXTVQA}/data/TextVQA_0.5.1_val.json",
            "TextVQA_0.5.1_val.json",
            place="TextVQA_0.5.1_val.json",
            about=int(3.1 * _MB),
        ),
        Resource(
            f"{_TEXTVQA}/data/TextVQA_Rosetta_OCR_v0.2_val.json",
            convert.ROSETTA,
            place=convert.ROSETTA,
            about=10 * _MB,
        ),
        Resource(
            f"{_TEXTVQA}/images/train_val_images.zip",
            "train_val_images.zip",
            pictures="train_images",
            about=int(7.07 * _GB),
            share=0.13,
        ),
    ),
    questions=(
        Questions(
            "llava_textvqa_val_v051_ocr.jsonl",
            "textvqa/llava_textvqa_val_v051_ocr.jsonl",
            convert.textvqa,
        ),
    ),
    images="train_images",
    answers="TextVQA_0.5.1_val.json",
    note="the OCR tokens of a question file made here are Rosetta's (v0.2), all and in their "
    "order; whether LLaVA's own file has the same was not compared, so take it from eval.zip to be "
    "sure",
)

VQAV2 = Source(
    name="vqav2",
    title="VQAv2",
    page="https://visualqa.org/download.html",
    terms="annotations CC BY 4.0; pictures under COCO's terms (Flickr)",
    splits=("val", "test-dev"),
    resources=(
        Resource(
            f"{_VQA}/v2_Questions_Val_mscoco.zip",
            "v2_Questions_Val_mscoco.zip",
            members=(("v2_OpenEnded_mscoco_val2014_questions.json",) * 2,),
            size=3_494_929,
            sha256="e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a",
            sum_from=_PARLAI,
            splits=("val",),
        ),
        Resource(
            f"{_VQA}/v2_Annotations_Val_mscoco.zip",
            "v2_Annotations_Val_mscoco.zip",
            members=(("v2_mscoco_val2014_annotations.json",) * 2,),
            size=10_518_930,
            sha256="0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e",
            sum_from=_PARLAI,
            splits=("val",),
        ),
        Resource(
            f"{_VQA}/v2_Questions_Test_mscoco.zip",
            "v2_Questions_Test_mscoco.zip",
            members=(
                ("v2_OpenEnded_mscoco_test-dev2015_questions.json",) * 2,
                ("v2_OpenEnded_mscoco_test2015_questions.json",) * 2,
            ),
            sha256="982e2e687a86514b78ea83af356d151976c5e3fb4168a29ca543610574082ad7",
            sum_from=_PARLAI,
            splits=("test-dev",),
        ),
        _val2014(1.0, ("val",)),
        Resource(
            f"{_COCO}/test2015.zip",
            "test2015.zip",
            pictures="test2015",
            size=13_270_587_935,
            share=0.5,
            sha256="1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca",
            sum_from=_TFDS,
            splits=("test-dev",),
        ),
    ),
    questions=(
        Questions(
            "llava_vqav2_mscoco_test-dev2015.jsonl",
            "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",
            splits=("test-dev",),
        ),
        Questions(
            "llava_vqav2_mscoco_test2015.jsonl",
            "vqav2/llava_vqav2_mscoco_test2015.jsonl",
            convert.vqav2_test2015,
            splits=("test-dev",),
        ),
    ),
)

VIZWIZ = Source(
    name="vizwiz",
    title="VizWiz",
    page="https://vizwiz.org/tasks-and-datasets/vqa/",
    terms="CC BY 4.0",
    splits=("val", "test"),
    resources=(
        Resource(
            f"{_VIZWIZ}/vqa_data/Annotations.zip",
            "vizwiz_Annotations.zip",
            members=(("val.json", "val.json"), ("test.json", "test.json")),
        ),
        Resource(f"{_VIZWIZ}/images/val.zip", "vizwiz_val.zip", pictures="val", splits=("val",)),
        Resource(
            f"{_VIZWIZ}/images/test.zip", "vizwiz_test.zip", pictures="test", splits=("test",)
        ),
    ),
    questions=(Questions("llava_test.jsonl", "vizwiz/llava_test.jsonl", splits=("test",)),),
)

GQA = Source(
    name="gqa",
    title="GQA",
    page="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    terms="see the page; pictures are Visual Genome's (COCO and Flickr)",
    resources=(
        Resource(
            f"{_GQA}/questions1.2.zip",
            "gqa_questions1.2.zip",
            members=(("testdev_balanced_questions.json", "data/testdev_balanced_questions.json"),),
            about=int(1.4 * _GB),
            share=0.01,
        ),
        Resource(
            f"{_GQA}/images.zip",
            "gqa_images.zip",
            pictures="data/images",
            about=int(20.3 * _GB),
            share=0.01,
        ),
    ),
    questions=(
        Questions("llava_gqa_testdev_balanced.jsonl", "gqa/llava_gqa_testdev_balanced.jsonl"),
    ),
)

POPE = Source(
    name="pope",
    title="POPE",
    page="https://github.com/AoiDragon/POPE",
    terms="MIT (labels); pictures under COCO's terms (Flickr)",
    resources=(
        *(
            Resource(
                f"{_POPE}/output/coco/coco_pope_{category}.json",
                f"coco_pope_{category}.json",
                place=f"coco/coco_pope_{category}.json",
                about=400_000,
            )
            for category in convert.POPE_CATEGORIES
        ),
        _val2014(0.02),
    ),
    questions=(Questions("llava_pope_test.jsonl", "pope/llava_pope_test.jsonl", convert.pope),),
    images="val2014",
    answers="coco",
    note="labels at the commit that LLaVA links, whose random file has 2,910 lines",
)
