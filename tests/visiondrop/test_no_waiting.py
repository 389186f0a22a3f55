"""A prefill never waits for the device: no value is read back, all shapes are known from budgets.

On the meta device there are no values: whatever reads one (`.item()`, `nonzero`, boolean indexing,
`tolist`) raises. The prompt's ids are on the host, as before a prefill. The vision tower stops at
the layer that is read, and a picture's tiles go through it together.
"""

import copy
import functools

import pytest
import torch
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

from tests.visiondrop import models, next_models
from tests.visiondrop.matrix import SETTINGS
from visiondrop import VisionDrop
from visiondrop.cache import MASK_CACHE
from visiondrop.run import padded_causal_mask

READS = {
    "vista": "its vectors are scaled by numbers that are read once, when the block is entered",
    "cdpruner": "the question's text is tokenised and encoded on the device of its own CLIP",
    "trim": "as CDPruner",
    "adaptive": "how many it keeps depends on the picture",
}
PICTURES = [name for name, setting in SETTINGS.items() if "single" not in setting.exempt]
READERS = [name for name in PICTURES if any(part in name for part in READS)]


@functools.cache
def on_meta(heads: int = 4):
    return copy.deepcopy(models.tiny(kv_heads=heads)).to("meta")


def prefill(method, rows, heads=4):
    model = on_meta(heads)
    pixels = models.pixels(len(rows)).to("meta")
    names = ["a", "b"][: len(rows)]
    with method(model, keys=names, questions=names) as trace, torch.inference_mode():
        return model(**models.batch(rows), pixel_values=pixels, logits_to_keep=1), trace


@pytest.mark.parametrize("name", READERS)
def test_those_that_read_by_definition_do_so(name):
    """So that no method stands among the readers that need not."""
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        prefill(SETTINGS[name].method, [models.prompt(5, 7, seed=1)])


@pytest.mark.parametrize("name", [name for name in PICTURES if name not in READERS])
@pytest.mark.parametrize("padded", [False, True])
def test_a_prefill_reads_nothing_back(name, padded):
    method = SETTINGS[name].method
    rows = [models.prompt(5, 7, seed=1), models.prompt(2, 3, seed=2)][: 1 + padded]
    out, trace = prefill(method, rows, heads=2 if padded else 4)
    assert out.logits.device.type == "meta"
    if "ledger" not in SETTINGS[name].exempt:
        plan = method.ledger(models.LAYERS, models.PATCHES, True)
        assert [sample.tokens_per_layer for sample in trace.samples] == [plan] * len(rows)


@pytest.mark.parametrize(("rows", "queries", "total"), [(2, 9, 9), (3, 1, 12), (2, 4, 11)])
def test_masks_are_those_of_transformers(rows, queries, total):
    config = copy.deepcopy(models.tiny().config.text_config)
    config._attn_implementation = "sdpa"
    padding = torch.ones(rows, total, dtype=torch.bool)
    padding[0, :3] = False
    hidden, cache = torch.zeros(rows, queries, config.hidden_size), DynamicCache(config=config)
    if total > queries:
        held = torch.zeros(rows, 1, total - queries, 8)
        cache.update(held, held, 0)
    expected = create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=padding,
        position_ids=None,
        **{MASK_CACHE: cache},
    )
    assert torch.equal(padded_causal_mask(padding, queries), expected)


def test_the_meta_device_does_refuse_a_reader():
    with pytest.raises(Exception, match="meta"):
        torch.empty(3, device="meta").argmax().item()
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.empty(3, device="meta").nonzero()


def counted(module, calls, name):
    return module.register_forward_hook(lambda *_: calls.append(name))


def test_the_tower_stops_at_the_layer_that_is_read():
    model = models.tiny()
    layers = model.model.vision_tower.encoder.layers
    assert len(layers) == 3  # hidden state -2 is the output of the second
    calls: list = []
    handles = [counted(layer, calls, i) for i, layer in enumerate(layers)]
    try:
        with SETTINGS["visiondrop"].method(model):
            model(
                **models.batch([models.prompt(3, 4)]),
                pixel_values=models.pixels(1),
                logits_to_keep=1,
            )
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [0, 1]


def test_the_tiles_of_pictures_are_encoded_in_one_batch():
    model = next_models.tiny_next()
    seen: list = []
    tower = model.model.vision_tower.embeddings
    handle = tower.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[0]))
    try:
        sizes = [next_models.SIZES[0], next_models.SIZES[2]]
        rows = [next_models.prompt(3, 4, 1, sizes[:1]), next_models.prompt(3, 4, 2, sizes[1:])]
        with VisionDrop(encoder=(40, 8), llm={2: (20, 4)})(model) as trace:
            next_models.generate(model, rows, next_models.inputs(sizes, [1, 2]), max_new_tokens=1)
    finally:
        handle.remove()
    assert len(seen) == 1 and seen[0] == sum(sample.tiles for sample in trace.samples)
