"""Several questions about one picture go on from one prefill of it (`visiondrop.image_cache`).

The prompts of a picture's questions are alike up to the picture's end. Where a method's choice does
not depend on what follows, that beginning is run once and its keys and values serve them all. The
answers are those of whole prompts; logits differ in their last bits, as they do between batches.

A picture with questions in several batches is run by itself and held, any other with those of its
batch: what it gives does not depend on where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from llava.eval.preparing import Prepared
from llava.eval.samples import Sample
from visiondrop import ImageCache, TowerCache, Trace
from visiondrop.engine import Engine
from visiondrop.parallel import group_of_decoder
from visiondrop.prefix import Prefix
from visiondrop.reuse import reads_keys, why_not_reusable

WORTH = 2.0
"""So many questions a picture on average make it worth while to split prompts in two."""


def why_not_shared(method: Any, samples: Sequence[Sample]) -> str | None:
    """Why a run's questions are asked with whole prompts; None where they share beginnings."""
    reason = why_not_reusable(method)
    if reason is None and reads_keys(method):
        reason = "it chooses by the sample's key, another for each question"
    if reason is not None:
        return f"{method.name}: {reason}"
    shown = [sample.image for sample in samples if sample.image is not None]
    each = len(shown) / max(1, len(set(shown)))
    return None if each >= WORTH else f"{each:.2f} questions a picture"


def sharing_note(asked: bool, method: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    """For the result json: whether beginnings were shared, and why not."""
    reason = why_not_shared(method, samples) if asked else "turned off"
    return {"used": reason is None, **({} if reason is None else {"reason": reason})}


def may_turn_answers(asked: bool, method: Any, samples: Sequence[Sample], dtype: str) -> bool:
    """Whether sharing is part of the settings that a run's answers are known by.

    In float32 it is not: answers are the same but for near ties, which the result lists. Below,
    last bits are larger and turn an answer now and then, as another batch size does, which is part
    of the settings, too.
    """
    return asked and dtype != "float32" and why_not_shared(method, samples) is None


class SharedPrefixes:
    """The prompt beginnings of a run.

    Args:
        model: LLaVA's front on a supported model.
        method: one that `why_not_shared` lets pass.
        several: names of the pictures with questions in several batches; these are held.
        max_bytes: limit of what is held.
        tower_cache, engine: of the run.
    """

    def __init__(
        self,
        model: Any,
        method: Any,
        several: frozenset[str],
        max_bytes: int,
        tower_cache: TowerCache,
        engine: Engine | None = None,
    ) -> None:
        self.cache = ImageCache(model, method, max_bytes, tower_cache, engine)
        self.several = several

    @classmethod
    def of(
        cls,
        model: Any,
        method: Any,
        samples: Sequence[Sample],
        several: frozenset[str],
        max_bytes: int,
        tower_cache: TowerCache,
        engine: Engine | None = None,
    ) -> SharedPrefixes | None:
        """For a run; None where whole prompts are asked."""
        if why_not_shared(method, samples) is not None or not hasattr(model, "expand"):
            return None
        shared = cls(model, method, several, max_bytes, tower_cache, engine)
        return None if group_of_decoder(shared.cache.decoder) is not None else shared

    def generate(
        self,
        prepared: Sequence[Prepared],
        samples: Sequence[Sample],
        trace: Trace,
        **options: Any,
    ) -> torch.Tensor:
        """New tokens [B, n] of a batch; its traces are added to `trace` as `generate` adds them,
        one a beam.
        """
        parts = [self._split(p) for p in prepared]
        prefixes = self._prefixes(prepared, samples, [head for head, _ in parts])
        rests = [rest for _, rest in parts]
        sequences = self.cache.generate(prefixes, rests, **options)
        for prefix, rest in zip(prefixes, rests, strict=True):
            if prefix.sample is not None:
                lengths = [length + len(rest) for length in prefix.sample.lengths]
                own = replace(prefix.sample, lengths=lengths)
                trace.samples += [own] * options.get("num_beams", 1)
        return sequences

    def _split(self, prepared: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
        """A prompt up to its picture's end and the rest; without a picture behind its first id."""
        if prepared.image is None:
            return prepared.input_ids[:1], prepared.input_ids[1:]
        return self.cache.split(prepared.input_ids)

    def _prefixes(
        self, prepared: Sequence[Prepared], samples: Sequence[Sample], heads: list[torch.Tensor]
    ) -> list[Prefix]:
        """The beginning of each prompt."""
        found: dict[Any, Prefix] = {}
        once: dict[Any, dict[str, Any]] = {}
        places = []
        for p, sample, head in zip(prepared, samples, heads, strict=True):
            place = (sample.image, tuple(head.tolist()))
            places.append(place)
            if place in found or place in once:
                continue
            prompt = self._prompt(p, sample, head)
            if sample.image is None or sample.image in self.several:
                found[place] = self.cache.build(**prompt)
            else:
                once[place] = prompt
        if once:
            made = self.cache.prefill(list(once.values()))
            found |= zip(once, made, strict=True)
        return [found[place] for place in places]

    def _prompt(self, p: Prepared, sample: Sample, head: torch.Tensor) -> dict[str, Any]:
        if p.image is None:
            return {"input_ids": head}
        model = self.cache.model
        return {
            "input_ids": head,
            "images": [p.image.to(model.device, model.dtype)],
            "image_sizes": [p.image_size],
            "names": [str(sample.image)],
        }
