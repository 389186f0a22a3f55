"""A conversation about pictures on kept KV: no turn runs what earlier turns have run.

    chat = Chat(ImageCache(model, method))
    first = chat.ask(ids_with_the_picture, {"pixel_values": pixels}, max_new_tokens=64)
    second = chat.ask(ids_of_the_next_turn, max_new_tokens=64)

A turn of text goes on from the KV that the last one left, exactly: the logits are those of a fresh
prompt of all ids so far (`Chat.ids`), among them the very ids that were generated. A turn with a
further picture cannot: stages inside the decoder score the new picture's tokens against keys that
the kept layers, each pruned to another length, do not hold, and methods that see all pictures of a
prompt would choose otherwise. So the conversation up to the new picture is prefilled anew (or taken
from the `ImageCache`); the vision tower's outputs of earlier pictures are used again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visiondrop.image_cache import ImageCache
from visiondrop.prefix import Prefix, cut_prefixes
from visiondrop.prefix_inputs import merge_inputs, one_row
from visiondrop.trace import SampleTrace

__all__ = ["Chat"]


class Chat:
    """One conversation. Several may share an `ImageCache`, one call at a time.

    Args:
        cache: the model with its method, and what is kept of pictures.

    Attributes:
        ids: [S] all ids so far, as they were given (for LLaVA's front with -200), and generated.
        turns: how many were asked.
    """

    def __init__(self, cache: ImageCache):
        self.cache = cache
        self.reset()

    def reset(self) -> None:
        """Begin a new conversation."""
        self.ids = torch.zeros(0, dtype=torch.long)
        self.turns = 0
        self._pictures: list[Mapping[str, Any]] = []
        self._prefix: Prefix | None = None
        self._covered = 0

    @property
    def sample(self) -> SampleTrace | None:
        """What the method did with the pictures so far; None before the first one."""
        return None if self._prefix is None else self._prefix.sample

    def ledger(self) -> dict[str, Any]:
        """Counts of what is kept: ids of the unpruned conversation in the KV, tokens held by each
        decoder layer, visual tokens among them and their mean, bytes.
        """
        layers = len(self.cache.decoder.layers)
        kept = self._prefix
        held = [0] * layers if kept is None else [kept.held(i) for i in range(layers)]
        sample = self.sample
        visual = [0] * layers if sample is None else list(sample.tokens_per_layer)
        return {
            "turns": self.turns,
            "ids": 0 if kept is None else len(kept),
            "held_per_layer": held,
            "visual_per_layer": visual,
            "mean_visual_tokens": sum(visual) / layers,
            "kv_bytes": 0 if kept is None else kept.kv_bytes,
        }

    def ask(self, ids: Any, pictures: Mapping[str, Any] | None = None, **kwargs: Any) -> Tensor:
        """One turn.

        Args:
            ids: [n] or [1, n], what follows everything so far (the last answer's ids are known), at
                least one. A turn's last picture must stand before its last id.
            pictures: of this turn, arguments of `ImageCache.build`: `pixel_values` or `images`, ...
            kwargs: of the model's `generate`, `streamer` among them; one answer a turn.

        Returns: [m] the new tokens, as generated.

        Raises `ValueError` on a turn that cannot be asked; the conversation is then as before.
        """
        if (kwargs.get("num_return_sequences") or 1) > 1:
            raise ValueError(
                f"num_return_sequences={kwargs['num_return_sequences']}: a turn has one answer"
            )
        whole = torch.cat([self.ids, one_row(ids)])
        shown = [*self._pictures, *([self.cache.named(pictures)] if pictures else [])]
        if pictures:
            prefix, covered = self._with_pictures(whole, shown)
        elif self._prefix is not None:
            prefix, covered = self._prefix, self._covered
        else:
            prefix, covered = self._text_alone(whole)
        kwargs["return_dict_in_generate"] = True
        out = self.cache.generate(prefix, whole[covered:], **kwargs)
        new = out.sequences[0].cpu()
        self.ids, self.turns, self._pictures = torch.cat([whole, new]), self.turns + 1, shown
        self._prefix, self._covered = prefix, covered
        if out.sequences.shape[0] == 1 and len(out.past_key_values.layers[0].keys) == 1:
            # With beams the kept rows are of other answers, too: the next turn reads this one anew.
            self._go_on(out.past_key_values)
        return new

    def _with_pictures(self, whole: Tensor, shown: list[Mapping[str, Any]]) -> tuple[Prefix, int]:
        """The prefix that ends with the last picture."""
        begin, rest = self.cache.split(whole)
        if not len(rest):
            raise ValueError("the turn ends with its picture; give the ids behind it, too")
        _, inputs = merge_inputs([{"input_ids": begin, **own} for own in shown])
        return self.cache.build(begin, **inputs), len(begin)

    def _text_alone(self, whole: Tensor) -> tuple[Prefix, int]:
        """The prefix of a conversation without pictures so far; it is not held for others."""
        if len(whole) < 2:
            raise ValueError("a first turn without a picture has at least two ids")
        return self.cache.prefill([{"input_ids": whole[:-1]}])[0], len(whole) - 1

    def _go_on(self, kv: Any) -> None:
        """Keep what a turn left."""
        assert self._prefix is not None
        before = self._prefix
        read = kv.get_seq_length() - len(before)
        ids = torch.cat([before.ids, self.ids[self._covered : self._covered + read]])
        self._prefix = cut_prefixes(kv, [""], [ids], [before.sample], before.owner)[0]
        self._covered += read
