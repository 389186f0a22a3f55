"""The model answers one batch of questions, and what is told of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers import LogitsProcessorList

from llava.eval.near_ties import Margins
from llava.eval.prefixes import SharedPrefixes
from llava.eval.preparing import Prepared
from llava.eval.samples import Sample, raw_question
from llava.eval.settings import RunSettings
from visiondrop import Trace
from visiondrop.engine import Engine, engine_named
from visiondrop.prefix import left_pad
from visiondrop.trace import SampleTrace


@dataclass
class LoadedModel:
    """What ``llava.model.builder.load_pretrained_model`` returns, with the model's name."""

    tokenizer: Any
    model: Any
    image_processor: Any
    context_len: int
    name: str
    engines: dict[str, Engine | None] = field(default_factory=dict)

    def engine(self, name: str) -> Engine | None:
        """The engine of a name (`visiondrop.engine.ENGINES`), one for all methods: what it records
        are layers, whatever chose their tokens."""
        if name not in self.engines:
            self.engines[name] = engine_named(name)
        return self.engines[name]

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)


def generate(
    loaded: LoadedModel,
    prepared: Sequence[Prepared],
    samples: Sequence[Sample],
    settings: RunSettings,
    trace: Trace,
    margins: Margins | None = None,
    shared: SharedPrefixes | None = None,
) -> tuple[list[str], list[int]]:
    """Answers of one batch: texts, and the number of new tokens of each.

    ``margins`` takes notes of greedy decoding; ``shared`` runs the beginnings of prompts once."""
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
    if shared is not None:
        sequences = shared.generate(prepared, samples, trace, **options)
    else:
        sequences = generate_whole(loaded, prepared, samples, trace, options)
    texts = loaded.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    ends = [_num_new_tokens(row, loaded) for row in sequences.tolist()]
    return [text.strip() for text in texts], ends


def generate_whole(
    loaded: LoadedModel,
    prepared: Sequence[Prepared],
    samples: Sequence[Sample],
    trace: Trace,
    options: dict[str, Any],
) -> torch.Tensor:
    """New tokens [B, n] of whole prompts."""
    device = loaded.model.device
    shown = [sample for sample in samples if sample.image is not None]
    trace.set_keys([sample.key for sample in shown])
    trace.set_pictures([str(sample.image) for sample in shown])
    trace.set_questions([raw_question(sample.prompt) for sample in shown])
    input_ids, mask = left_pad([p.input_ids for p in prepared], loaded.pad_id)
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
    sequences: torch.Tensor = loaded.model.generate(
        input_ids.to(device), attention_mask=mask.to(device), **options
    )
    return sequences


def _num_new_tokens(ids: list[int], loaded: LoadedModel) -> int:
    """New tokens up to and including the end token; what follows is padding."""
    eos = loaded.model.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    for i, token in enumerate(ids):
        if token in ends:
            return i + 1
    return len(ids)


def text_tokens(prepared: Prepared) -> int:
    """Tokens of a prompt without its pictures."""
    return int((prepared.input_ids >= 0).sum())


def _batch_seed(seed: int, key: str) -> int:
    """Sampling is seeded batch by batch, so that a resumed run draws the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:7])


def traces_of(trace: Trace, prepared: Sequence[Prepared], num_beams: int) -> list[Any]:
    """The batch's traces, one a sample; None for those without a picture.

    Beams of a sample share one picture, so the first one's trace is the sample's."""
    found = iter(trace.samples[::num_beams])
    return [next(found, None) if p.image is not None else None for p in prepared]


def describe_trace(sample_trace: SampleTrace) -> dict[str, Any]:
    """Visual tokens per layer as runs ``[[tokens, layers], ...]``, what passed tower and projector,
    bytes of the KV cache; of any-resolution pictures the newlines among the tokens, too."""
    layers = sample_trace.tokens_per_layer
    newlines = {"newlines": sample_trace.mean_newlines} if any(sample_trace.grids) else {}
    return {
        "visual_tokens": [[tokens, len(list(run))] for tokens, run in groupby(layers)],
        "tiles": sample_trace.tiles,
        "projected": sample_trace.projected,
        "kv_bytes": sample_trace.kv_bytes,
        **newlines,
    }
