"""One of two processes that hold the pocket model between them; started by torchrun.

    torchrun --standalone --nproc_per_node 2 -m tests.llava.sharded_pocket OUT ENGINE ...

Each process writes to OUT/RANK.json what the methods kept and the model answered.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import visiondrop.adapters.base
import visiondrop.decoder
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.tensor_parallel import load_tensor_parallel, same_everywhere
from visiondrop import VisionDrop
from visiondrop.methods.fastv import FastV
from visiondrop.reducer import Reducer

ROOT = Path(__file__).resolve().parents[2]
POCKET = str(ROOT / "checkpoints" / "pocket-llava")
ORIGINAL = str(ROOT / "tests" / "golden" / "tiny-llava-v1.5")
FOLDER = ROOT / "playground" / "data" / "eval" / "textvqa"
METHODS: dict[str, Reducer] = {
    "visiondrop": VisionDrop.from_average(64, num_layers=16),
    "fastv": FastV(2, tokens=80),
}


def asked() -> list[dict[str, str]]:
    """Questions of the sample set, on three pictures."""
    lines = (FOLDER / "llava_textvqa_val_v051_ocr.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:18:6]]


def told(loaded: Any, method: Reducer) -> dict[str, Any]:
    """What a method keeps and the model answers, in one batch: stage by stage, and texts."""
    tokenizer, model, processor, _ = loaded
    questions = asked()
    prompts = [f"USER: <image>\n{question['text']} ASSISTANT:" for question in questions]
    ids = [torch.tensor(tokenizer_image_token(prompt, tokenizer)) for prompt in prompts]
    pictures = [Image.open(FOLDER / "train_images" / q["image"]).convert("RGB") for q in questions]
    images = process_images(pictures, processor, model.config)
    with torch.inference_mode(), method(model) as trace:
        out = model.generate(ids, images=images, do_sample=False, max_new_tokens=6)
    stages = [[stage.to_dict() for stage in sample.stages] for sample in trace.samples]
    return {"stages": stages, "texts": tokenizer.batch_decode(out, skip_special_tokens=True)}


def original_layout() -> dict[str, Any]:
    """A checkpoint in LLaVA's original layout, spread and whole: what VisionDrop keeps, and the
    largest difference of logits."""
    method = VisionDrop(encoder=(42, 6), llm={8: (30, 5), 16: (22, 4), 24: (16, 3)})
    ids = torch.tensor([[1, 5, -200, 7, 8, 9]])
    images = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"device": "cpu", "torch_dtype": torch.float32}
    kept, logits = [], []
    for loaded in (
        load_tensor_parallel(ORIGINAL, None, "tiny-llava-v1.5", "transformers", **options),
        load_pretrained_model(ORIGINAL, None, "tiny-llava-v1.5", **options),
    ):
        with method(loaded[1]) as trace:
            out = loaded[1].generate(
                ids,
                images=images,
                do_sample=False,
                max_new_tokens=4,
                return_dict_in_generate=True,
                output_logits=True,
            )
        kept.append([stage.to_dict() for stage in trace.samples[0].stages])
        logits.append(torch.stack(out.logits))
    return {"kept": kept, "difference": (logits[0] - logits[1]).abs().max().item()}


def own_heads(linear: Any, projected: Any, heads: int, head_dim: int) -> Any:
    """The mistake: what a process has is taken for all there is."""
    return projected.view(*projected.shape[:2], -1, head_dim).transpose(1, 2)


def main(out: str, *engines: Any) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for engine in engines:
        start = time.perf_counter()
        loaded = load_tensor_parallel(POCKET, None, "pocket-llava", engine, device="cpu")
        print(f"{engine}: loaded in {time.perf_counter() - start:.1f} s", flush=True)
        found[engine] = {name: told(loaded, method) for name, method in METHODS.items()}
        attention = loaded[1].model.language_model.layers[0].self_attn
        found[engine]["heads here"] = attention.q_proj(torch.zeros(1, 1, 160)).shape[-1] // 40
        gathered, decided = visiondrop.adapters.base.all_heads, visiondrop.decoder.FirstDecides
        visiondrop.adapters.base.all_heads = own_heads
        visiondrop.decoder.FirstDecides = lambda method, _: method  # type: ignore[assignment,misc]
        found[engine]["own heads"] = told(loaded, METHODS["visiondrop"])
        visiondrop.adapters.base.all_heads = gathered
        visiondrop.decoder.FirstDecides = decided
        found[engine]["seconds"] = time.perf_counter() - start
    if "transformers" in engines:
        found["original"] = original_layout()
    found["same"] = same_everywhere([3, 1 + int(os.environ["RANK"])])
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
