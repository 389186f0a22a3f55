"""A model answers the questions of a run, batch by batch, with a method applied to it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

from llava.eval.answers import AnswerStore, Row
from llava.eval.errors import EvalError
from llava.eval.preparing import Prepared, QuestionDataset, batch_loader, left_pad
from llava.eval.samples import Sample, raw_question
from llava.eval.settings import RunSettings, digest_of_json
from visiondrop import TowerCache, Trace
from visiondrop.trace import SampleTrace


@dataclass
class LoadedModel:
    """What ``llava.model.builder.load_pretrained_model`` returns, with the model's name."""

    tokenizer: Any
    model: Any
    image_processor: Any
    context_len: int
    name: str

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)


def answer_id(sample: Sample, settings: RunSettings) -> str:
    """Hash of the sample's key and of the run's settings."""
    return digest_of_json([sample.key, settings.digest])[:22]


def make_row(sample: Sample, settings: RunSettings, text: str, metadata: dict[str, Any]) -> Row:
    """A line of LLaVA's answers file, with what else the sample key needs."""
    row: Row = {
        "question_id": sample.question_id,
        "prompt": sample.prompt,
        "text": text,
        "answer_id": answer_id(sample, settings),
        "model_id": settings.model,
        "image": sample.image,
        **sample.beside,
        "metadata": metadata,
    }
    if sample.round_id is not None:
        row["round_id"] = sample.round_id
    return row


def answer_questions(
    loaded: LoadedModel,
    method: Any,
    store: AnswerStore,
    dataset: QuestionDataset,
    batches: Sequence[int] | None = None,
    workers: int = 0,
    label: str = "",
    position: int = 0,
    tower_cache: TowerCache | None = None,
) -> None:
    """Answer the batches of ``store`` that are still open (of ``batches``, if given).

    Each batch is on the disk before the next begins.  ``label`` names the run beside the progress
    bar; ``position`` is the bar's line when several processes draw one each.  A picture with
    several questions in a batch passes the vision tower once; with ``tower_cache`` also across
    batches and runs.
    """
    wanted = range(len(store.batches)) if batches is None else batches
    todo = sorted(set(store.todo) & set(wanted))
    if not todo:
        return
    total = sum(len(store.batches[k]) for k in wanted)
    done = total - sum(len(store.batches[k]) for k in todo)
    parent = os.getppid()
    loader = batch_loader(dataset, [store.batches[k] for k in todo], workers)
    bar = tqdm(total=total, initial=done, desc=label, unit="q", position=position, leave=True)
    with bar, torch.inference_mode(), method(loaded.model, tower_cache=tower_cache) as trace:
        start = time.perf_counter()
        for k, prepared in zip(todo, loader):
            rows = _answer_batch(loaded, store, prepared, trace)
            now = time.perf_counter()
            store.append(k, rows, now - start)
            start = now
            bar.update(len(rows))
            trace.clear()
            if os.getppid() != parent:
                raise EvalError("the process that started this one is gone; stopping")


def _answer_batch(
    loaded: LoadedModel, store: AnswerStore, prepared: Sequence[Prepared], trace: Any
) -> list[Row]:
    settings = store.settings
    rows: dict[int, Row] = {
        p.index: make_row(store.samples[p.index], settings, "", {"error": p.error})
        for p in prepared
        if p.error is not None
    }
    ready = [p for p in prepared if p.error is None]
    if ready:
        samples = [store.samples[p.index] for p in ready]
        texts, new_tokens = generate(loaded, ready, samples, settings, trace)
        traces = _traces(trace, ready, settings.num_beams)
        for p, sample, text, count, sample_trace in zip(ready, samples, texts, new_tokens, traces):
            metadata = {"text_tokens": _text_tokens(p), "new_tokens": count}
            if sample_trace is not None:
                metadata.update(describe_trace(sample_trace))
            rows[p.index] = make_row(sample, settings, text, metadata)
    return [rows[p.index] for p in prepared]


def generate(
    loaded: LoadedModel,
    prepared: Sequence[Prepared],
    samples: Sequence[Sample],
    settings: RunSettings,
    trace: Trace,
) -> tuple[list[str], list[int]]:
    """Answers of one batch: texts, and the number of new tokens of each."""
    device = loaded.model.device
    shown = [sample for sample in samples if sample.image is not None]
    trace.set_keys([sample.key for sample in shown])
    trace.set_pictures([str(sample.image) for sample in shown])
    trace.set_questions([raw_question(sample.prompt) for sample in shown])
    input_ids, mask = left_pad([p.input_ids for p in prepared], loaded.pad_id)
    options: dict[str, Any] = {
        "do_sample": settings.temperature > 0,
        "num_beams": settings.num_beams,
        "max_new_tokens": settings.max_new_tokens,
        "pad_token_id": loaded.pad_id,
        "use_cache": True,
    }
    if settings.temperature > 0:
        options.update(temperature=settings.temperature, top_p=settings.top_p)
        torch.manual_seed(_batch_seed(settings.seed, samples[0].key))
    images = [p.image for p in prepared if p.image is not None]
    if images:
        same = all(image.shape == images[0].shape for image in images)
        dtype = loaded.model.dtype
        options["images"] = (
            torch.stack(images).to(device, dtype)
            if same
            else [image.to(device, dtype) for image in images]
        )
        options["image_sizes"] = [p.image_size for p in prepared if p.image_size is not None]
    sequences = loaded.model.generate(
        input_ids.to(device), attention_mask=mask.to(device), **options
    )
    texts = loaded.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    ends = [_num_new_tokens(row, loaded) for row in sequences.tolist()]
    return [text.strip() for text in texts], ends


def _num_new_tokens(ids: list[int], loaded: LoadedModel) -> int:
    """New tokens up to and including the end token; what follows is padding."""
    eos = loaded.model.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    for i, token in enumerate(ids):
        if token in ends:
            return i + 1
    return len(ids)


def _text_tokens(prepared: Prepared) -> int:
    return int((prepared.input_ids >= 0).sum())


def _batch_seed(seed: int, key: str) -> int:
    """Sampling is seeded batch by batch, so that a resumed run draws the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:7])


def _traces(trace: Trace, prepared: Sequence[Prepared], num_beams: int) -> list[Any]:
    """The batch's traces, one a sample; None for those without a picture.

    Beams of a sample share one picture, so the first one's trace is the sample's."""
    found = iter(trace.samples[::num_beams])
    return [next(found, None) if p.image is not None else None for p in prepared]


def describe_trace(sample_trace: SampleTrace) -> dict[str, Any]:
    """Visual tokens per layer as runs ``[[tokens, layers], ...]``, and bytes of the KV cache."""
    layers = sample_trace.tokens_per_layer
    return {
        "visual_tokens": [[tokens, len(list(run))] for tokens, run in groupby(layers)],
        "kv_bytes": sample_trace.kv_bytes,
    }
