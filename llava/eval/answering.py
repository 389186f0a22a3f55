"""A model answers the questions of a run, batch by batch, with a method applied to it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from llava.eval.answered import Row
from llava.eval.answers import AnswerStore
from llava.eval.errors import EvalError
from llava.eval.generating import (
    LoadedModel,
    describe_trace,
    generate,
    text_tokens,
    traces_of,
)
from llava.eval.near_ties import Margins
from llava.eval.pictures import Pictures
from llava.eval.prefixes import SharedPrefixes
from llava.eval.preparing import HELD_BY_WORKER, Prepared, QuestionDataset, batch_loader
from llava.eval.samples import Sample
from llava.eval.settings import RunSettings, digest_of_json
from visiondrop import TowerCache, Trace

RUN_CACHE_BYTES = 2 * 2**30
"""Most that a run holds of pictures whose questions lie in several batches: of LLaVA-1.5 in half
precision, at 3.5 MB each, those of GQA or POPE."""
PATIENCE = 8
"""So many samples may make the model raise an error before any has worked."""


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
    image_cache: bool = True,
) -> None:
    """Answer the batches of ``store`` that are still open (of ``batches``, if given).

    Each batch is on the disk before the next begins.  ``label`` names the run beside the progress
    bar; ``position`` is the bar's line when several processes draw one each.  A picture with
    several questions passes the vision tower once, as long as `run_tower_cache` holds what comes
    between them; ``tower_cache`` is another store, that runs may share.  With ``image_cache`` its
    questions also go on from one prefill, where the method allows it (`SharedPrefixes`).

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
    engine = loaded.engine(store.settings.engine)
    shared = None
    if image_cache:
        several = in_several_batches(store.samples, store.batches)
        most = most_held(loaded.model.device)
        shared = SharedPrefixes.of(
            loaded.model, method, store.samples, several, most, tower_cache, engine
        )
    bar = tqdm(total=total, initial=done, desc=label, unit="q", position=position, leave=True)
    applied = method(loaded.model, tower_cache=tower_cache, engine=engine)
    if shared is not None:
        applied = shared.cache.applied()
    with bar, torch.inference_mode(), applied as trace:
        start = time.perf_counter()
        for k, prepared in zip(todo, loader):
            answers = _answer_batch(loaded, store, prepared, trace, shared)
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
    return TowerCache(most_held(device), in_several_batches(samples, batches), hold_all=False)


def most_held(device: torch.device) -> int:
    """Bytes that each store of a run may hold on a device."""
    if device.type == "cuda":
        return min(RUN_CACHE_BYTES, torch.cuda.get_device_properties(device).total_memory // 16)
    return RUN_CACHE_BYTES // 4


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
    loaded: LoadedModel,
    store: AnswerStore,
    prepared: Sequence[Prepared],
    trace: Trace,
    shared: SharedPrefixes | None,
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
            made = _answer_ready(loaded, store, ready, trace, shared)
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
    loaded: LoadedModel,
    store: AnswerStore,
    ready: Sequence[Prepared],
    trace: Trace,
    shared: SharedPrefixes | None,
) -> dict[int, tuple[Row, float | None]]:
    settings = store.settings
    samples = [store.samples[p.index] for p in ready]
    margins = Margins() if settings.temperature == 0 and settings.num_beams == 1 else None
    trace.clear()
    texts, new_tokens = generate(loaded, ready, samples, settings, trace, margins, shared)
    least = [None] * len(ready) if margins is None else margins.least(new_tokens)
    traces = traces_of(trace, ready, settings.num_beams)
    made: dict[int, tuple[Row, float | None]] = {}
    for i, (p, sample, sample_trace) in enumerate(zip(ready, samples, traces)):
        metadata = {"text_tokens": text_tokens(p), "new_tokens": new_tokens[i]}
        if sample_trace is not None:
            metadata.update(describe_trace(sample_trace))
        made[p.index] = make_row(sample, settings, texts[i], metadata), least[i]
    trace.clear()
    return made
