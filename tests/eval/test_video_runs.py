"""Clips through the whole evaluation, with a tiny random model of Video-LLaVA's geometry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration
from transformers import VideoLlavaForConditionalGeneration as Stock

from llava.eval.benchmarks import BENCHMARKS, get_benchmark
from llava.eval.benchmarks.video import ClipBenchmark
from llava.eval.clips import read_clip
from llava.eval.errors import EvalError
from llava.eval.preparing import QuestionDataset
from llava.eval.run_benchmark import main
from llava.model.builder import load_pretrained_model
from llava.train.pocket_data import normalize
from llava.train.pocket_video_model import export_video, from_pocket, make_video_tokenizer
from tests.train.tiny import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Random, no decoder layer an identity."""
    image, folder = (tmp_path_factory.mktemp(n) for n in ("image", "video"))
    write_checkpoint(image)
    tokenizer = make_video_tokenizer()
    model = from_pocket(LlavaForConditionalGeneration.from_pretrained(image), tokenizer)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.model.language_model.layers.parameters():
            p.add_(0.15 * torch.randn_like(p))
    export_video(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_pretrained_model(str(checkpoint), None, "tiny", device="cpu")


def dataset(loaded, samples, pictures, blank=False) -> QuestionDataset:
    tokenizer, model, processor, _ = loaded
    return QuestionDataset(
        samples, pictures, tokenizer, processor, model.config, "vicuna_v1", "square", blank
    )


def bundled(name: str):
    benchmark = get_benchmark(name)
    files = benchmark.files(benchmark.default_data)
    return benchmark.read(files), benchmark.pictures(files)


def test_a_clip_is_prepared_as_eight_frames(loaded):
    """224 x 224 frames pass as they are, with CLIP's mean and deviation."""
    samples, pictures = bundled("msvd")
    prepared = dataset(loaded, samples, pictures)[0]
    frames = read_clip(pictures.find(samples[0].image))
    import numpy as np

    true = normalize(torch.from_numpy(np.stack([np.asarray(f) for f in frames])))
    assert prepared.error is None and prepared.image_size == (224, 224)
    torch.testing.assert_close(prepared.image, true, atol=1e-5, rtol=0)
    blank = dataset(loaded, samples, pictures, blank=True)[0].image
    assert blank.shape == (8, 3, 224, 224) and (blank[0] == blank[7]).all()
    assert not torch.equal(blank, prepared.image)


def test_a_broken_clip_fails_alone(loaded, tmp_path):
    from llava.eval.clips import ClipFolder

    samples, _ = bundled("msvd")
    (tmp_path / f"{samples[0].image}.gif").write_bytes(b"GIF89a broken")
    prepared = dataset(loaded, samples, ClipFolder(tmp_path))[0]
    assert prepared.image is None and "cannot read picture" in prepared.error


def test_generation_is_the_stock_models(loaded, checkpoint):
    """Two clips and two questions in a batch, against the stock class on placeholders."""
    tokenizer, model, *_ = loaded
    samples, pictures = bundled("msvd")
    ready = [dataset(loaded, samples, pictures)[i] for i in (0, 8)]
    options = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": tokenizer.pad_token_id}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    clips = torch.stack([p.image for p in ready])
    both = model.generate([p.input_ids for p in ready], images=clips, **options)
    assert (both.logits[0][0] - both.logits[0][1]).abs().max() > 0.01  # clips and questions count
    stock = Stock.from_pretrained(checkpoint, dtype=torch.float32)
    for k, p in enumerate(ready):
        at = int((p.input_ids == -200).nonzero())
        video = torch.full((2056,), model.config.video_token_id)
        ids = torch.cat([p.input_ids[:at], video, p.input_ids[at + 1 :]])[None]
        out = stock.generate(input_ids=ids, pixel_values_videos=p.image[None], **options)
        new = out.sequences[0, ids.shape[1] :]
        assert torch.equal(both.sequences[k, : len(new)], new)
        for ours, theirs in zip(both.logits, out.logits, strict=False):
            torch.testing.assert_close(ours[k], theirs[0], atol=2e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="frames, 3, 224, 224"):
        model.generate([ready[0].input_ids], images=[ready[0].image[0]], **options)


def run(checkpoint: Path, out: Path, *more: str) -> dict[str, dict]:
    argv = ["msrvtt", "--model-path", str(checkpoint), "--limit", "4", "--out", str(out)]
    argv += ["--max-new-tokens", "4", "--workers", "0", "--dtype", "float32", *more]
    assert main(argv) == 0
    return {p.parent.name: json.loads(p.read_text()) for p in out.rglob("result.json")}


def test_a_run_counts_tokens_of_a_clip_and_writes_the_judges_file(checkpoint, tmp_path, capsys):
    methods = "full,visiondrop,random,uniform,dtd,framewise"
    found = run(checkpoint, tmp_path, "--methods", methods, "--tokens", "194", "--batch-size", "3")
    assert found["full-2056"]["mean_tokens"] == 2056
    for name in ("random", "uniform", "framewise"):
        assert found[f"{name}-194"]["mean_tokens"] == 194, name
    drop = found["visiondrop-194"]
    assert abs(drop["mean_tokens"] - 194) < 0.5
    assert drop["ledger"][0] == 3 * 194 and drop["mean_tokens"] == sum(drop["ledger"]) / 4
    changed = next(v for k, v in found.items() if k.startswith("dtd"))
    assert 257 <= changed["mean_tokens"] < 2056
    for result in found.values():
        assert result["metric"] == "exact match, no GPT" and result["failed"] == 0
        assert result["files"] == ["merge.jsonl"] and set(result["figures"]) == {"contained"}
    lines = (tmp_path / "msrvtt" / "full-2056" / "merge.jsonl").read_text().splitlines()
    answers = (tmp_path / "msrvtt" / "full-2056" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(x)["pred"] for x in lines] == [json.loads(x)["text"] for x in answers]
    assert "exact match, no GPT" in " ".join(capsys.readouterr().out.split())


def test_a_batch_answers_as_its_singles(tmp_path):
    """Of the bundled model, whose answers differ; whole prompts one by one against the clip's
    prefill shared by a batch."""
    checkpoint = Path(ClipBenchmark.default_model)
    flags = "--methods", "visiondrop", "--tokens", "194"
    one = run(checkpoint, tmp_path / "1", *flags, "--batch-size", "1", "--image-cache", "off")
    four = run(checkpoint, tmp_path / "4", *flags, "--batch-size", "4")
    texts = [
        [json.loads(x)["text"] for x in p.read_text().splitlines()]
        for p in sorted(tmp_path.rglob("answers.jsonl"))
    ]
    assert len(texts) == 2 and texts[0] == texts[1] and len(set(texts[0])) > 1
    assert one["visiondrop-194"]["mean_tokens"] == four["visiondrop-194"]["mean_tokens"]


def test_the_bundled_model_is_the_video_model():
    clips = {n for n, b in BENCHMARKS.items() if issubclass(b, ClipBenchmark)}
    assert clips == {"tgif", "msvd", "msrvtt"}
    for name, benchmark in BENCHMARKS.items():
        own = "pocket-video-llava" if name in clips else "pocket-llava"
        assert Path(benchmark.default_model).name == own
        assert (Path(benchmark.default_model) / "config.json").is_file()


def test_a_method_that_is_not_defined_on_clips_says_so(checkpoint, tmp_path):
    with pytest.raises(EvalError, match="not defined on videos.*methods that work here"):
        run(checkpoint, tmp_path, "--methods", "region", "--tokens", "194")
