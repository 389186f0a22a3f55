"""What a method costs on one prompt: by plan, and as the counter finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visiondrop.profiling.counting import Counted
from visiondrop.profiling.flops import Flops, ModelSize, kv_bytes_by_layer, prefill_flops
from visiondrop.profiling.inputs import Setting
from visiondrop.reducer import Reducer

__all__ = ["Plan", "as_run", "plan"]


@dataclass(frozen=True)
class Plan:
    """What follows from a method's ledger, without running anything.

    Attributes:
        mean_tokens: visual tokens, the mean over decoder layers.
        whole: FLOPs as the VisionDrop paper counts them: the whole vision tower, the LM head at
            all positions.
        run: FLOPs of what runs: the tower up to the layer that is read (for the stock model all of
            it), the LM head at the last position.
        kv_bytes: of each decoder layer after the prefill.
    """

    mean_tokens: float
    whole: Flops
    run: Flops
    kv_bytes: list[int]


def plan(setting: Setting, method: Reducer | None, dtype_bytes: int, has_cls: bool = True) -> Plan:
    """The cost of one prompt; `method` None is the stock model.

    Raises `ValueError` where the tokens of each layer do not say what a method costs.
    """
    size = ModelSize.from_config(setting.config)
    if method is not None and not method.flops_by_ledger:
        raise ValueError(f"{method.name}: its cost does not follow from the tokens of each layer")
    ledger = [setting.patches] * size.num_layers
    if method is not None:
        ledger = method.ledger(size.num_layers, setting.patches, has_cls)
    text, tiles = setting.text_tokens, setting.tiles
    whole = prefill_flops(size, ledger, text, tiles=tiles, like_paper=True)
    run = prefill_flops(size, ledger, text, tiles=tiles)
    if method is None:
        run = Flops(whole.tower, whole.projector, run.decoder, run.lm_head)
    cache = kv_bytes_by_layer(size, [n + text for n in ledger], dtype_bytes)
    return Plan(sum(ledger) / len(ledger), whole, run, cache)


def as_run(setting: Setting, counted: Counted) -> Flops:
    """The formula on what a run recorded of itself: tokens of each layer, newlines that stayed,
    tiles, tokens that were projected. The counter's `parts` are to be the same.
    """
    size = ModelSize.from_config(setting.config)
    words = setting.text_tokens - setting.newlines
    if counted.samples:
        sample = counted.samples[0]
        return prefill_flops(
            size, sample.tokens_per_layer, words, tiles=sample.tiles,
            projected_tokens=sample.projected,
        )  # fmt: skip
    ledger = [setting.patches + setting.newlines] * size.num_layers
    projected = setting.tiles * size.num_patches
    counts: dict[str, Any] = dict(tiles=setting.tiles, projected_tokens=projected)
    last = prefill_flops(size, ledger, words, **counts)
    whole = prefill_flops(size, ledger, words, **counts, like_paper=True)
    return Flops(whole.tower, last.projector, last.decoder, last.lm_head)
