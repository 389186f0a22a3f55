"""The modified LlamaModel forward: a decoder cut into blocks that hold ever fewer visual tokens.

Hooks on one model object carry a method through stock `forward` and `generate`:

1. `get_image_features` of the base model (and `get_video_features`, where the family has videos)
   is replaced on the instance by the adapter's `features`.
2. A pre-hook on the base model notes where the placeholders are.
3. A pre-hook on the decoder re-packs the prompt without the dropped rows (prefill), or extends
   every block's mask and positions by the new tokens (decode).
4. A pre-hook on each decoder layer runs the stages and hands each block its own mask and positions.

Whatever outlives a forward is on the KV cache (`visiondrop.cache`).
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from visiondrop.adapters.base import Adapter, Geometry
from visiondrop.cache import cache_name, is_pruned, make_pruned
from visiondrop.encoder import Encoding, Picture
from visiondrop.engine.attached import Attached
from visiondrop.engine.engine import Engine
from visiondrop.extensions.base import Extension
from visiondrop.kv_dropping import blocks_as_held
from visiondrop.layout import pack
from visiondrop.mrope import KeptCount, new_planes, note_deltas, prompt_planes, resume_deltas
from visiondrop.parallel import FirstDecides, group_of_decoder
from visiondrop.picture_inputs import PictureInputs
from visiondrop.prompt import read_prompt
from visiondrop.reducer import Reducer
from visiondrop.refusals import refuse_lost_logits
from visiondrop.run import (
    Block,
    Run,
    Uncached,
    block_angles,
    block_mask,
    padded_causal_mask,
    row_positions,
)
from visiondrop.stages import LayerInput, StageInput, run_stage
from visiondrop.trace import Trace

__all__ = ["Mechanism"]


class Mechanism:
    """One application of one method to one model: `attach` sets hooks, `detach` removes them."""

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        geometry: Geometry,
        method: Reducer,
        trace: Trace,
        engine: Engine | None = None,
    ):
        adapter = adapter.with_engine(engine)
        self.model, self.adapter, self.geometry = model, adapter, geometry
        self.trace = trace
        self.base: Any = adapter.base(model)
        self.decoder: Any = adapter.decoder(model)
        self.group = group_of_decoder(self.decoder)
        self.method: Any = method if self.group is None else FirstDecides(method, self.group)
        self.stage_layers = set(method.llm_layers())
        self.original = method.positions == "original"
        self.extensions: list[Extension] = method.extensions()
        self.layers: Any = self.decoder.layers  # an engine puts others there for a pass
        self.fast = None if engine is None else Attached(self, engine)
        self.handles: list[Any] = []
        self.inputs = PictureInputs(model, adapter, Encoding(geometry, self.method, trace))
        self.uncached: Uncached | None = None
        self.run: Run | None = None

    # ------------------------------------------------------------------ hooks on and off

    def attach(self) -> None:
        """Set all hooks."""
        self.inputs.attach()
        self.handles += [
            self.model.register_forward_pre_hook(self.before_model, with_kwargs=True),
            self.base.register_forward_pre_hook(self.before_base, with_kwargs=True),
            self.decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True),
            self.decoder.register_forward_hook(self.after_decoder, always_call=True),
        ]
        for index, layer in enumerate(self.layers):
            hook = functools.partial(self.before_layer, index)
            self.handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        if self.geometry.mrope:
            self.handles.append(KeptCount(self.model, self.base))
        for extension in self.extensions:
            extension.attach(self)

    def detach(self) -> None:
        """Remove all hooks, whatever one of them raises; the model is as before."""
        with ExitStack() as last_first:
            last_first.callback(self.inputs.detach)
            if self.fast is not None:
                last_first.callback(self.fast.release)
            for handle in self.handles:
                last_first.callback(handle.remove)
            for extension in self.extensions:
                last_first.callback(extension.detach)
            self.handles, self.run = [], None

    # ------------------------------------------------------------------ before the decoder

    def before_model(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Refuse what a shortened sequence cannot answer."""
        refuse_lost_logits(self.method, self.inputs.kinds, kwargs)

    def before_base(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note the prompt's ids and, where they were encoded before, its pictures."""
        if self.geometry.mrope and is_pruned(cache := kwargs.get(cache_name(kwargs))):
            resume_deltas(self.base, cache)
        self.inputs.expect(kwargs.get("input_ids", args[0] if args else None), kwargs)

    def before_decoder(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Re-pack the prompt, or go on with a re-packed one."""
        cache = kwargs.get(cache_name(kwargs))
        pictures = self.inputs.take()
        if is_pruned(cache):
            if pictures:
                raise ValueError(
                    "a further picture after a reduced prompt: start again with all pictures in "
                    "one prompt, without past_key_values"
                )
            return args, self.go_on(cache, kwargs)
        if not pictures:
            self.run = None
            return None
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError(
                "a picture after tokens that were cached without this method: start again without "
                "past_key_values"
            )
        return args, self.prefill(pictures, cache, kwargs)

    def prefill(
        self, pictures: dict[str, list[Picture]], cache: Any, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Replace embeddings, mask and positions by those without the dropped rows."""
        embeds: Tensor = kwargs["inputs_embeds"]
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self.decoder.config, "use_cache", True)
        if cache is None and use_cache:
            cache = DynamicCache(config=self.decoder.config)
        if cache is not None:
            cache = make_pruned(cache)
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise ValueError(
                f"attention_mask has {mask.dim()} dimensions; a reduced prompt needs the "
                "2-dimensional mask of padding, [batch, length]"
            )
        device = embeds.device
        visual, own = self.inputs.by_row(pictures)
        prompt = read_prompt(visual, mask, own, embeds)
        run = Run(True, cache, rows=prompt.rows, stages=prompt.stages, real=prompt.real)
        run.columns, run.passed = visual.shape[1], prompt.passed
        if cache is None:
            assert self.inputs.input_ids is not None
            self.uncached = Uncached.follow(self.uncached, self.inputs.input_ids)
            run.tail = self.uncached.tail
        packed = pack(prompt.pool, prompt.index)
        run.note_layout(device)
        if self.original and self.method.entry_positions == "original":
            run.places = pack(prompt.place_pool, prompt.place_index)
        elif self.original:
            run.places = row_positions(run, device)
            run.real = run.lengths[0]
        if self.geometry.mrope:
            run.planes = prompt_planes(kwargs.get("position_ids"), mask, embeds)
            note_deltas(self.base, cache, embeds.shape[0])
        if self.method.uses_input:
            run.entry = packed, run.rows
        self.run = run
        if cache is not None:
            cache.armed = True

        kwargs = dict(kwargs, inputs_embeds=packed, use_cache=use_cache)
        kwargs[cache_name(kwargs)] = cache
        padding = run.padding[0]
        if padding is None and cache is None and self.original:
            # Gaps in the positions, no mask and no cache would be taken for packed sequences.
            padding = torch.ones(packed.shape[:2], dtype=torch.bool, device=device)
        kwargs["attention_mask"] = self.ready_mask(padding, packed)
        kwargs["position_ids"] = row_positions(run, device)
        if self.fast is not None:
            self.fast.begin_prefill(run, kwargs)
        return kwargs

    def ready_mask(self, padding: Tensor | None, embeds: Tensor) -> Tensor | None:
        """The first block's mask as the decoder takes it: made where that saves asking the device,
        else the mask of padding, from which the decoder makes its own.
        """
        if padding is None or self.decoder.config._attn_implementation != "sdpa":
            return padding
        return padded_causal_mask(padding, embeds.shape[1])

    def go_on(self, cache: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Extend every block by the new tokens and prepare its mask and positions."""
        embeds: Tensor = kwargs["inputs_embeds"]
        batch, new = embeds.shape[:2]
        new_mask = None
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 2 and new > 1:
            tail = mask[:, -new:].bool()
            new_mask = None if bool(tail.all()) else tail
        cache.blocks = blocks_as_held(cache, self.extensions)
        self.run = run = Run(False, cache, columns=new, new_mask=new_mask)
        cache.armed = True
        if self.fast is not None and (fast := self.fast.begin_decode(run, kwargs)) is not None:
            return fast
        steps = torch.arange(new, device=embeds.device).expand(batch, -1)
        if new_mask is not None:
            steps = (new_mask.long().cumsum(1) - 1).clamp(min=0)
        planes = None
        if self.geometry.mrope:
            planes = new_planes(kwargs.get("position_ids"), embeds, cache.logical)
        shared: Block | None = None
        for held in cache.blocks:
            first = cache.logical_count if self.original else held.count
            positions = planes if planes is not None else first.to(embeds.device)[:, None] + steps
            held.extend(new_mask, new)
            attention = block_mask(self.decoder, embeds, held.mask, cache, held.first_layer)
            if self.original and shared is not None:
                cos_sin = shared.cos_sin
            else:
                cos_sin = self.decoder.rotary_emb(embeds, position_ids=positions)
            shared = Block(held.first_layer, attention, positions, cos_sin)
            run.blocks.append(shared)
        first_block = cache.blocks[0]
        mask = self.ready_mask(first_block.mask, embeds)
        return dict(kwargs, attention_mask=mask, position_ids=run.blocks[0].positions)

    # ------------------------------------------------------------------ inside and after

    def before_layer(
        self, index: int, _module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run the stage before layer `index`; hand the layer its block's mask and positions."""
        run = self.run
        if run is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if run.prefill and index in self.stage_layers:
            hidden = self.reduce(run, index, hidden, kwargs["position_embeddings"])
        block = next((b for b in reversed(run.blocks) if b.first_layer <= index), None)
        kwargs = dict(kwargs)
        if block is not None:
            kwargs["attention_mask"] = block.mask
            kwargs["position_embeddings"] = block.cos_sin
            kwargs["position_ids"] = block.positions
        if run.prefill and self.method.looks_back and index + 1 in self.stage_layers:
            cos, sin = kwargs["position_embeddings"]
            run.before = LayerInput(self.layers[index], hidden, cos, sin)
        if self.original:
            # FlashAttention takes gaps in positions for packed sequences; RoPE has its own
            # argument.
            kwargs["position_ids"] = None
        if args:
            return (hidden, *args[1:]), kwargs
        return args, dict(kwargs, hidden_states=hidden)

    def reduce(
        self, run: Run, index: int, hidden: Tensor, cos_sin: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One LLM stage: select and merge, pack again, open a new block."""
        if run.blocks:
            cos_sin = run.blocks[-1].cos_sin
        # With a decoder spread over devices, the stage runs where its layer is. The norm says it:
        # a quantised projection's weight may be packed, or a method.
        device = self.layers[index].input_layernorm.weight.device
        if device.type != "meta":
            hidden, cos_sin = hidden.to(device), (cos_sin[0].to(device), cos_sin[1].to(device))
        stage = StageInput(
            index,
            LayerInput(self.layers[index], hidden, *cos_sin),
            run.rows,
            run.places,
            run.before,
            run.entry,
            run.tail,
            self.geometry.grid,
            self.decoder.norm,
        )
        run.before = None
        outcome = run_stage(self.adapter, self.method, stage)
        for own, new in zip(run.stages, outcome.stages, strict=True):
            own.extend(new)
        run.rows, run.places = outcome.rows, outcome.places
        run.note_layout(hidden.device)
        positions = row_positions(run, hidden.device)
        block = Block(
            index,
            block_mask(self.decoder, outcome.hidden, run.padding[-1], run.cache, index, first=True),
            positions,
            block_angles(self.decoder, run, outcome.hidden, positions, cos_sin),
        )
        run.blocks.append(block)
        return outcome.hidden

    def after_decoder(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Close the forward: lengths onto the cache, what happened into the trace."""
        run, self.run = self.run, None
        if self.fast is not None:
            self.fast.end()
        if run is None:
            return
        if run.cache is not None:
            run.cache.armed = False
        if output is None:
            return
        if run.prefill:
            if run.cache is not None:
                run.store_blocks(self.decoder.embed_tokens.weight.device)
            samples = run.samples(self.decoder, self.geometry.num_layers, output[0].dtype)
            if run.tail:
                # Without a cache the whole row runs again for each new token: still one sample.
                del self.trace.samples[-len(samples) :]
            self.trace.samples.extend(samples)
        else:
            new = run.columns if run.new_mask is None else run.new_mask.sum(1)
            run.cache.logical += run.columns
            run.cache.logical_count = run.cache.logical_count + new
