"""Prune once, ask many: the KV of a prompt's beginning, kept for every question that follows it.

    cache = ImageCache(model, VisionDrop.from_average(64, num_layers=32))
    prefix = cache.build(input_ids=up_to_and_with_the_picture, pixel_values=pixels)
    answers = cache.generate(prefix, [first_question_ids, second_question_ids], max_new_tokens=16)

What the decoder computes for (system prompt, picture) does not depend on what follows, and neither
does what a method keeps that does not look at the text. So going on from the kept KV gives the
logits of a fresh prompt, up to rounding. Methods that ask the question are refused.

The cache applies its method itself, for the length of each call (`ImageCache.applied` for longer).
Calls on one model must not overlap in time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from visiondrop.adapters import adapter_of
from visiondrop.cache_room import LEAST_ROOM
from visiondrop.engine import Engine
from visiondrop.methods import Full
from visiondrop.prefix import Prefix, cut_prefixes, join_prefixes, left_pad
from visiondrop.prefix_files import model_fingerprint, read_prefixes, write_prefixes
from visiondrop.prefix_inputs import digest_of, merge_inputs, one_row, picture_names, rows_of
from visiondrop.prefix_store import CacheStats, PrefixStore
from visiondrop.prompt import kinds_of
from visiondrop.reducer import Reducer
from visiondrop.reuse import check_reusable, refuse_ways
from visiondrop.tower_cache import TowerCache
from visiondrop.trace import Trace

__all__ = ["CacheStats", "ImageCache"]

TOWER_BYTES = 256 * 2**20
NAMED = {"LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"}
EXPANDING = ("num_beams", "num_return_sequences")
"""Arguments of `generate` that make several rows of a prompt."""


class ImageCache(PrefixStore):
    """A least-recently-used store of prompt beginnings on one model with one method.

    Args:
        model: a supported transformers model, or LLaVA's own front on one (`llava.model`).
        method: of visual-token reduction; None for none.
        max_bytes: limit of the keys and values that are held; the least recently used go first. A
            prefix in use outlives its eviction.
        tower_cache: where outputs of the vision tower are kept; by default a store of its own, of
            256 MiB.
        engine: records or compiles what runs again and again, see `visiondrop.engine`.

    Raises:
        TypeError: unknown model family.
        ValueError: the method looks at what follows the picture, or cannot meet its budget here.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Reducer | None = None,
        max_bytes: int = 2 * 2**30,
        tower_cache: TowerCache | None = None,
        engine: Engine | None = None,
    ):
        super().__init__(max_bytes)
        self.model: Any = model
        self.method: Reducer = Full() if method is None else method
        self.tower_cache = TowerCache(TOWER_BYTES) if tower_cache is None else tower_cache
        self.engine = engine
        self.adapter = adapter_of(model)
        self.decoder: Any = self.adapter.decoder(model)
        check_reusable(self.method)
        self.method.check(self.adapter.geometry(self.model.config))
        self._trace: Trace | None = None

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Write all prefixes to one safetensors file, atomically."""
        write_prefixes(path, list(self._held.values()), self.model, self.method)

    def load(self, path: str | Path) -> int:
        """Add the prefixes of a file, the most recently used last; returns how many.

        Raises `ValueError` on a file of another model, method or version, or a damaged one.
        """
        prefixes = read_prefixes(path, self.model, self.method, self.device)
        for prefix in prefixes:
            prefix.owner = self.owner
            self.add(prefix)
        return len(prefixes)

    # ------------------------------------------------------------------ building

    @property
    def device(self) -> torch.device:
        """Where prompts enter the model."""
        device = self.model.get_input_embeddings().weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @contextmanager
    def applied(self) -> Iterator[Trace]:
        """The method on the model for the length of a `with` block, for many calls of this cache.

        Raises `RuntimeError` where the model runs a method already.
        """
        if self._trace is not None:
            yield self._trace
            return
        with self.method(self.model, tower_cache=self.tower_cache, engine=self.engine) as trace:
            self._trace = trace
            try:
                yield trace
            finally:
                self._trace = None

    def _visual(self, ids: Tensor) -> Tensor:
        """Where ids stand for pictures or videos."""
        kinds = self.adapter.visual_inputs(self.model.config)
        return (ids < 0) | torch.isin(ids, ids.new_tensor([kind.token_id for kind in kinds]))

    def split(self, input_ids: Any) -> tuple[Tensor, Tensor]:
        """A prompt's ids up to and with the last picture or video, and the rest.

        Raises `ValueError` on ids without a picture.
        """
        ids = one_row(input_ids)
        visual = self._visual(ids)
        if not bool(visual.any()):
            raise ValueError("the prompt holds no picture to split behind; give prefix and rest")
        end = int(visual.nonzero()[-1]) + 1
        return ids[:end], ids[end:]

    def build(self, input_ids: Any, **inputs: Any) -> Prefix:
        """The prefix of a prompt's beginning: the one held, or a new one.

        Args:
            input_ids: [S] or [1, S], as the model's processor makes them up to where questions
                begin: at least with the last picture; for LLaVA's front with -200.
            inputs: what belongs to them: `pixel_values` (and `image_sizes`, ...) as the model takes
                them; for LLaVA's front `images` and, any resolution, `image_sizes`. Besides
                `attention_mask` of padding, `names` (one per picture; equal names mean equal
                pixels, which are then not hashed, and the tower's output may be taken from
                `tower_cache`), and `keys` (one per picture, for methods that draw by them).

        Raises `ValueError` where ids and pictures do not fit.
        """
        return self.build_all([{"input_ids": input_ids, **inputs}])[0]

    def build_all(self, prompts: Sequence[Mapping[str, Any]]) -> list[Prefix]:
        """The prefixes of several beginnings; those that are not held in one batch.

        Args:
            prompts: of each the arguments of `build`, all with the same names.
        """
        prompts = [self.named(prompt) for prompt in prompts]
        keys = [self.key_of(prompt) for prompt in prompts]
        found: dict[str, Prefix] = {}
        new: dict[str, Mapping[str, Any]] = {}
        for key, prompt in zip(keys, prompts, strict=True):
            prefix = self.get(key)
            if prefix is not None or key in new:
                self._hits += 1
            else:
                self._misses += 1
                new[key] = prompt
            if prefix is not None:
                found[key] = prefix
        if new:
            for prefix in self._run(list(new), list(new.values())):
                found[prefix.key] = prefix
                self.add(prefix)
        return [found[key] for key in keys]

    def prefill(self, prompts: Sequence[Mapping[str, Any]]) -> list[Prefix]:
        """New prefixes, in one batch, which are not held; each prompt has the arguments of
        `build`.
        """
        prompts = [self.named(prompt) for prompt in prompts]
        return self._run([self.key_of(prompt) for prompt in prompts], prompts)

    def named(self, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        """A beginning whose pictures have names: hashes of their pixels where none were given, in
        families where a row of pixels is one picture. Others are hashed whole, and the tower's
        outputs found again by names that are given only.
        """
        if prompt.get("names") is not None or NAMED.isdisjoint(self.adapter.families):
            return prompt
        names = picture_names(prompt, self.adapter.geometry(self.model.config).crops)
        return prompt if names is None else {**prompt, "names": names}

    def key_of(self, prompt: Mapping[str, Any]) -> str:
        """SHA-256 of a beginning: its ids, its pictures (by name or pixels) and the method."""
        return digest_of(prompt, self.method.to_dict())

    @torch.no_grad()
    def _run(self, keys: list[str], prompts: list[Mapping[str, Any]]) -> list[Prefix]:
        rows, inputs = merge_inputs(prompts)
        names, sample_keys = inputs.pop("names", None), inputs.pop("keys", None)
        if "images" in inputs:
            if not hasattr(self.model, "expand"):
                raise ValueError(
                    f"images are LLaVA's own argument, and {type(self.model).__name__} is the "
                    "stock class: give pixel_values"
                )
            images, sizes = inputs.pop("images"), inputs.pop("image_sizes", None)
            expanded, pictures = self.model.expand(rows, images, sizes)
            ids, mask = expanded.input_ids, expanded.attention_mask
            inputs.update(pictures)
        else:
            ids, mask = left_pad(rows, self._pad_id)
        if inputs and self.adapter.geometry(self.model.config).mrope:
            kinds = self.adapter.visual_inputs(self.model.config)
            types = kinds_of(ids, [kind.token_id for kind in kinds])
            inputs["mm_token_type_ids"] = torch.from_numpy(types)
        ids, mask = ids.to(self.device), mask.to(self.device)
        inputs = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        cache = DynamicCache(config=self.decoder.config)
        with self.applied() as trace:
            before = trace.keys, trace.pictures
            seen = len(trace.samples)
            trace.set_keys(sample_keys)
            trace.set_pictures(names)
            try:
                self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                    **inputs,
                )
            finally:
                trace.keys, trace.pictures = before
            samples = iter(trace.samples[seen:])
            del trace.samples[seen:]
        own = [row[m.bool()] for row, m in zip(ids, mask, strict=True)]
        shown = [next(samples, None) if bool(self._visual(row).any()) else None for row in own]
        return cut_prefixes(cache, keys, own, shown, self.owner)

    @cached_property
    def owner(self) -> str:
        """What tells prefixes of this model and method from others (`Prefix.owner`)."""
        method = json.dumps(self.method.to_dict(), sort_keys=True)
        return f"{model_fingerprint(self.model)} {method}"

    @property
    def _pad_id(self) -> int:
        pad = self.model.generation_config.pad_token_id
        token = self.adapter.image_token_id(self.model.config)
        return 0 if pad is None or pad < 0 or pad == token else int(pad)

    # ------------------------------------------------------------------ asking

    def logits(self, prefixes: Prefix | Sequence[Prefix], questions: Any) -> Tensor:
        """[B, V], the next token's logits behind each question; arguments as in `generate`."""
        own, rows = self._pair(prefixes, questions)
        ids, mask = self._prompts(own, rows)
        width = max(map(len, rows))
        with torch.no_grad(), self.applied():
            out = self.model(
                input_ids=ids[:, -width:],
                attention_mask=mask,
                past_key_values=join_prefixes(own, self.decoder.config, width),
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1]

    def generate(self, prefixes: Prefix | Sequence[Prefix], questions: Any, **kwargs: Any) -> Any:
        """Answer questions that follow kept prefixes.

        Args:
            prefixes: one for all questions, or one each.
            questions: ids that follow the prefix: [n], [B, n], or a list of B rows of unequal
                length, which are left-padded.
            kwargs: of the model's `generate`; not the prompt's own.

        Returns: the new tokens only, [B, new]; with `return_dict_in_generate` the model's output,
        whose `sequences` are the new tokens. Processors and criteria see what they see in the
        model's own `generate`.

        Raises `ValueError` where prefixes and questions differ in number, or one is empty, where a
        prefix is another model's or method's, and on ways of decoding that cannot go on from kept
        KV.
        """
        refuse_ways(kwargs, self.model.generation_config)
        own, rows = self._pair(prefixes, questions)
        ids, mask = self._prompts(own, rows)
        length = ids.shape[1]
        repeats = self._repeats(kwargs)
        cache = join_prefixes(
            [p for p in own for _ in range(repeats)],
            self.decoder.config,
            max(map(len, rows)) + LEAST_ROOM,
        )
        if hasattr(self.model, "leave_prompt_out"):
            self.model.leave_prompt_out(kwargs, length)
        with self.applied():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, **kwargs
            )
        if isinstance(out, Tensor):
            return out[:, length:]
        out.sequences = out.sequences[:, length:]
        return out

    def _pair(
        self, prefixes: Prefix | Sequence[Prefix], questions: Any
    ) -> tuple[list[Prefix], list[Tensor]]:
        """One prefix for each question, and the questions' rows."""
        rows = rows_of(questions)
        own = [prefixes] * len(rows) if isinstance(prefixes, Prefix) else list(prefixes)
        if len(own) != len(rows):
            raise ValueError(
                f"{len(own)} prefixes for {len(rows)} questions: give one for all, or one each"
            )
        if any(prefix.owner != self.owner for prefix in own):
            raise ValueError(
                f"a prefix of another model or method than {self.method.name!r} here, whose keys "
                "and values would be wrong: build it with this cache"
            )
        return own, rows

    def _prompts(self, prefixes: list[Prefix], rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, T] of the whole prompts: both parts are left-padded by themselves."""
        parts = [left_pad(side, self._pad_id) for side in ([p.ids for p in prefixes], rows)]
        ids, mask = (torch.cat(both, 1).to(self.device) for both in zip(*parts, strict=True))
        return ids, mask

    def _repeats(self, kwargs: Mapping[str, Any]) -> int:
        """Rows that `generate` makes of each prompt."""
        config = kwargs.get("generation_config") or self.model.generation_config
        counts = [kwargs.get(n) or getattr(config, n, None) or 1 for n in EXPANDING]
        return max(counts)
