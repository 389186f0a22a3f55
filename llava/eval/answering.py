"""A model answers the questions of a run, batch by batch, with a method applied to it."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm
from transformers import LogitsProcessorList

from llava.eval.answered import Row
from llava.eval.answers import AnswerStore
from llava.eval.errors import EvalError
from llava.eval.near_ties import Margins
from llava.eval.pictures import Pictures
from llava.eval.preparing import (
    HELD_BY_WORKER,
    Prepared,
    QuestionDataset,
    batch_loader,
    left_pad,
)
from llava.eval.samples import Sample, raw_question
from llava.eval.settings import RunSettings, digest_of_json
from visiondrop import TowerCache, Trace
from visiondrop.trace import SampleTrace

RUN_CACHE_BYTES = 2 * 2**30
"""Most that a run holds of pictures whose questions lie in several batches: of LLaVA-1.5 in half
precision, at 3.5 MB each, those of GQA or POPE."""
PATIENCE = 8
"""So many samples may make the model raise an error before any has worked."""


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


def dataset_of(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    pictures: Pictures,
    settings: RunSettings,
    hold_bytes: int = HELD_BY_WORKER,
) -> QuestionDataset:
    """The questions of a run as its model takes them."""
    return QuestionDataset(
        samples,
        pictures,
        loaded.tokenizer,
        loaded.image_processor,
        loaded.model.config,
        settings.conv_mode,
        settings.image_aspect_ratio,
        settings.blank_picture,
        hold_bytes,
    )


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
    several questions passes the vision tower once, as long as `run_tower_cache` holds what comes
    between them; ``tower_cache`` is another store, that runs may share.

    A sample that makes the model raise an error is recorded as failed, and the others of its batch
    are answered one by one.  The error is raised where nothing has been answered so far: then it is
    the method or the model that does not work.
    """
    wanted = range(len(store.batches)) if batches is None else batches
    todo = sorted(set(store.todo) & set(wanted))
    if not todo:
        return
    total = sum(len(store.batches[k]) for k in wanted)
    done = total - sum(len(store.batches[k]) for k in todo)
    parent = os.getppid()
    loader = batch_loader(dataset, [store.batches[k] for k in todo], workers)
    if tower_cache is None:
        tower_cache = run_tower_cache(loaded.model.device, store.samples, store.batches)
    works = any("error" not in row["metadata"] for row in store.rows())
    held: list[tuple[int, BatchAnswers, float]] = []
    bar = tqdm(total=total, initial=done, desc=label, unit="q", position=position, leave=True)
    with bar, torch.inference_mode(), method(loaded.model, tower_cache=tower_cache) as trace:
        start = time.perf_counter()
        for k, prepared in zip(todo, loader):
            answers = _answer_batch(loaded, store, prepared, trace)
            now = time.perf_counter()
            held.append((k, answers, now - start))
            start = now
            errors = [error for _, earlier, _ in held for error in earlier.errors]
            works = works or answers.answered > 0
            if errors and not works:
                if len(errors) >= PATIENCE:
                    raise errors[0]
                continue
            for index, ready, seconds in held:
                store.append(index, ready.rows, seconds, ready.margins)
                bar.update(len(ready.rows))
            held.clear()
            if os.getppid() != parent:
                raise EvalError("the process that started this one is gone; stopping")

    if held:
        raise held[0][1].errors[0]


def run_tower_cache(
    device: torch.device, samples: Sequence[Sample], batches: Sequence[range]
) -> TowerCache:
    """The store of one run: a sixteenth of a GPU's memory at most, a quarter of the limit on a CPU.

    Its size changes how often a picture is encoded, never an answer."""
    most = RUN_CACHE_BYTES // 4
    if device.type == "cuda":
        most = min(RUN_CACHE_BYTES, torch.cuda.get_device_properties(device).total_memory // 16)
    return TowerCache(most, in_several_batches(samples, batches), hold_all=False)


def in_several_batches(samples: Sequence[Sample], batches: Sequence[range]) -> frozenset[str]:
    """Names of the pictures whose questions lie in more than one batch."""
    shown = (
        {str(samples[i].image) for i in batch if samples[i].image is not None} for batch in batches
    )
    counts = Counter(name for names in shown for name in names)
    return frozenset(name for name, count in counts.items() if count > 1)


@dataclass
class BatchAnswers:
    """What became of a batch.

    Attributes:
        rows: of the answers file, in order.
        margins: of each row, see `llava.eval.near_ties`.
        answered: how many of them the model answered.
        errors: what it raised on others, one a sample.
    """

    rows: list[Row]
    margins: list[float | None]
    answered: int = 0
    errors: list[Exception] = field(default_factory=list)


def _answer_batch(
    loaded: LoadedModel, store: AnswerStore, prepared: Sequence[Prepared], trace: Trace
) -> BatchAnswers:
    settings = store.settings
    found: dict[int, tuple[Row, float | None]] = {
        p.index: (make_row(store.samples[p.index], settings, "", {"error": p.error}), None)
        for p in prepared
        if p.error is not None
    }
    errors: list[Exception] = []

    def answer(ready: list[Prepared]) -> None:
        try:
            made = _answer_ready(loaded, store, ready, trace)
        except torch.OutOfMemoryError:
            if len(ready) > 1:
                raise EvalError(
                    f"out of memory with a batch of {len(ready)}; use a smaller one (BATCH, "
                    "--batch-size) and another place (OUT) or --overwrite, as the batch is part "
                    "of the settings"
                ) from None
            fail(ready[0], "out of memory")
        except (EvalError, torch.AcceleratorError):
            raise  # the device is unusable from then on: nothing could be answered any more
        except Exception as error:
            trace.clear()
            if len(ready) > 1:
                for p in ready:
                    answer([p])
                return
            errors.append(error)
            fail(ready[0], " ".join(f"{type(error).__name__}: {error}".split())[:300])
        else:
            found.update(made)

    def fail(p: Prepared, reason: str) -> None:
        row = make_row(store.samples[p.index], settings, "", {"error": reason})
        found[p.index] = row, None

    ready = [p for p in prepared if p.error is None]
    if ready:
        answer(ready)
    rows, margins = zip(*(found[p.index] for p in prepared))
    answered = sum("error" not in row["metadata"] for row in rows)
    return BatchAnswers(list(rows), list(margins), answered, errors)


def _answer_ready(
    loaded: LoadedModel, store: AnswerStore, ready: Sequence[Prepared], trace: Trace
) -> dict[int, tuple[Row, float | None]]:
    settings = store.settings
    samples = [store.samples[p.index] for p in ready]
    margins = Margins() if settings.temperature == 0 and settings.num_beams == 1 else None
    trace.clear()
    texts, new_tokens = generate(loaded, ready, samples, settings, trace, margins)
    least = [None] * len(ready) if margins is None else margins.least(new_tokens)
    traces = _traces(trace, ready, settings.num_beams)
    made: dict[int, tuple[Row, float | None]] = {}
    for i, (p, sample, sample_trace) in enumerate(zip(ready, samples, traces)):
        metadata = {"text_tokens": _text_tokens(p), "new_tokens": new_tokens[i]}
        if sample_trace is not None:
            metadata.update(describe_trace(sample_trace))
        made[p.index] = make_row(sample, settings, texts[i], metadata), least[i]
    trace.clear()
    return made


def generate(
    loaded: LoadedModel,
    prepared: Sequence[Prepared],
    samples: Sequence[Sample],
    settings: RunSettings,
    trace: Trace,
    margins: Margins | None = None,
) -> tuple[list[str], list[int]]:
    """Answers of one batch: texts, and the number of new tokens of each.

    ``margins`` takes notes of greedy decoding."""
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
    if margins is not None:
        options["logits_processor"] = LogitsProcessorList([margins])
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
