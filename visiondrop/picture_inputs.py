"""The pictures of the prompt to come: encoded where stock code encodes them, told apart where its
ids are at hand.

transformers 5.23 encodes in `generate()`, before any forward, and hands the features on; 5.17
encodes inside the forward. Both call `get_image_features` of the base model (and
`get_video_features`, where the family has videos), which is replaced on the instance.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import Tensor

from visiondrop.adapters.base import Adapter, VisualInput
from visiondrop.encoder import Encoded, Encoding, Picture, whole_picture
from visiondrop.prompt import kinds_of, repeated, split_pictures
from visiondrop.prompt_budget import encode_or_wait, encode_waiting, share_stages
from visiondrop.prompt_stage import reduce_prompts
from visiondrop.refusals import refuse_foreign_features, refuse_single_frames

__all__ = ["PictureInputs"]


class PictureInputs:
    """Of one model with one method; `attach` replaces functions, `detach` puts them back."""

    def __init__(self, model: Any, adapter: Adapter, encoding: Encoding):
        self.model, self.adapter, self.encoding = model, adapter, encoding
        self.base: Any = adapter.base(model)
        decoder: Any = adapter.decoder(model)
        self.embeddings: Tensor = decoder.embed_tokens.weight
        self.kinds = adapter.visual_inputs(model.config)
        self.input_ids: Tensor | None = None
        self.pending: dict[str, list[Picture]] = {}
        self.saved: dict[str, Any] = {}

    def attach(self) -> None:
        """Replace the base model's functions."""
        for kind in self.kinds:
            self.saved[kind.function] = self.base.__dict__.get(kind.function)
            setattr(self.base, kind.function, self.encoder_of(kind))

    def detach(self) -> None:
        """Put them back."""
        for function, saved in self.saved.items():
            if saved is not None:
                setattr(self.base, function, saved)
            else:
                self.base.__dict__.pop(function, None)
        self.saved, self.pending, self.input_ids = {}, {}, None

    def encoder_of(self, kind: VisualInput) -> Any:
        """What takes the place of the base model's function for a kind of visual input."""

        @functools.wraps(getattr(self.base, kind.function))
        def features(*args: Any, **kwargs: Any) -> Encoded:
            parts = self.adapter, kind.modality, self.model, self.encoding.of(kind.modality)
            encoded = encode_or_wait(*parts, self.embeddings, args, kwargs)
            self.note(kind, encoded)
            return encoded

        return features

    def note(self, kind: VisualInput, output: Any) -> None:
        """Remember what the feature rows of the prompt to come mean."""
        pictures = getattr(output, "pictures", None)
        if pictures is None:
            refuse_foreign_features(self.encoding.method, self.encoding.geometry)
            device = output.pooler_output[0].device
            entries = self.adapter.entries(self.model.config, kind.modality, output)
            pictures = [whole_picture(rows, self.encoding.geometry, device) for rows in entries]
        self.pending[kind.modality] = pictures

    def expect(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> None:
        """A forward of the base model begins: its ids and, where they were encoded before, its
        pictures.
        """
        self.input_ids, self.pending = input_ids, {}
        encoded = kwargs.get("mm_encoder_outputs") or {}
        for kind in self.kinds:
            known = encoded.get(kind.modality)
            if known is None and not kind.given(kwargs):
                continue
            if input_ids is None:
                raise ValueError("pictures with inputs_embeds: give input_ids, to know their place")
            refuse_single_frames(self.encoding.method, self.encoding.geometry, kind, input_ids)
            if known is not None:
                self.note(kind, known)

    def take(self) -> dict[str, list[Picture]]:
        """The pictures of this forward by modality; there are none from then on."""
        pictures, self.pending = self.pending, {}
        return pictures

    def by_row(self, pictures: dict[str, list[Picture]]) -> tuple[np.ndarray, list[list[Picture]]]:
        """Where the placeholders are ([B, S] bool), and the pictures of each row, reduced.

        Raises `ValueError` where placeholders and pictures do not fit.
        """
        assert self.input_ids is not None
        method = self.encoding.method
        kinds = kinds_of(self.input_ids, [kind.token_id for kind in self.kinds])
        queues = [pictures.get(kind.modality, []) for kind in self.kinds]
        rows = split_pictures(kinds, repeated(kinds, queues))
        rows = encode_waiting(method, rows)
        rows = self.adapter.with_prompt(self.model, self.encoding, kinds, rows)
        rows = share_stages(method, rows)
        if method.before_llm and method.before == "prompt":
            rows = reduce_prompts(method, self.encoding.geometry, rows)
        return kinds > 0, rows
