"""Methods on models whose decoder has 8-bit weights."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from tests.visiondrop.matrix import METHODS, exempt, fits
from tests.visiondrop.models import generate, logits, pixels, prompt, tiny
from tests.visiondrop.quantised import KINDS, pair, replaced
from visiondrop import Full, VisionDrop
from visiondrop.engine import Engine

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
FAMILIES: list[dict[str, Any]] = [{}, {"tower": "siglip", "decoder": "qwen2", "kv_heads": 2}]
METHOD = VisionDrop(encoder=(14, 4), llm={2: (10, 3), 4: (7, 2), 6: (4, 1)})
models = functools.cache(lambda kind, family: pair(kind, **FAMILIES[family]))


def run(model: Any, method: Any, rows: list[list[int]], **kwargs: Any) -> tuple[Any, Any]:
    pictures = pixels(len(rows), 4)
    if method is None:
        return logits(generate(model, rows, pictures, **kwargs)), []
    asked = {"questions": ["a question"] * len(rows)} if "text encoder" in method.needs else {}
    with method(model, **asked) as trace:
        return logits(generate(model, rows, pictures, **kwargs)), trace.samples


def kept(samples: list[Any]) -> list[Any]:
    """What each stage of each sample made of each token."""
    return [[(s.identity.tolist(), s.target.tolist()) for s in one.stages] for one in samples]


@pytest.mark.parametrize(
    ("name", "kind", "family"),
    [
        (name, list(KINDS)[i % 2], f)
        for i, name in enumerate(METHODS)
        for f in [i // 2 % 2]
        if fits(name, "siglip" if f else "clip") and not exempt(name, "single")
    ],
)
def test_quantised_model_keeps_what_its_dequantised_weights_keep(name, kind, family):
    """The same products in the same order: to the last bit."""
    small, plain = models(kind, family)
    rows = [prompt(3, 5, seed=1)]
    of_small, samples = run(small, METHODS[name], rows, max_new_tokens=2, min_new_tokens=2)
    of_plain, expected = run(plain, METHODS[name], rows, max_new_tokens=2, min_new_tokens=2)
    assert torch.equal(of_small, of_plain)
    assert kept(samples) == kept(expected) and any(kept(samples)) == any(kept(expected))
    assert [s.kv_bytes for s in samples] == [s.kv_bytes for s in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_model_unpruned_batched_and_recomputed(kind):
    small, plain = models(kind, 0)
    rows = [prompt(3, 5, seed=1), prompt(9, 4, seed=2)]
    stock = run(small, None, rows)[0]
    assert torch.equal(run(small, Full(), rows)[0], stock)
    assert not torch.allclose(stock, run(tiny(), None, rows)[0], atol=1e-3)  # rounding is felt
    both, samples = run(small, METHOD, rows)
    for r, row in enumerate(rows):
        with METHOD(small) as trace:
            out = generate(small, [row], pixels(2, 4)[r : r + 1])
            again = generate(small, [row], pixels(2, 4)[r : r + 1], use_cache=False)
        torch.testing.assert_close(logits(out)[:, 0], both[:, r], **CLOSE)
        torch.testing.assert_close(logits(again), logits(out), **CLOSE)
        assert kept(trace.samples[:1]) == kept(samples[r : r + 1])


def test_cache_bytes_are_those_of_the_cache():
    """Weights say nothing of it: here the first one is of 8 bits, and the cache of 32 or 16."""
    small = copy.deepcopy(models("int8", 0)[0])
    small.model.language_model.version = nn.Parameter(
        torch.ones(1, dtype=torch.int8), requires_grad=False
    )
    assert next(small.model.language_model.parameters()).dtype == torch.int8
    for use_cache in (True, False):
        one = run(small, METHOD, [prompt(3, 5)], use_cache=use_cache)[1][0]
        assert one.bytes_per_token == 2 * 4 * 8 * 4
    half = copy.deepcopy(tiny()).bfloat16()
    with METHOD(half) as trace:
        cache = generate(half, [prompt(3, 5)], pixels(1).bfloat16()).past_key_values
    held = sum(t[:, :, :-4].nbytes for one in cache.layers for t in (one.keys, one.values))
    assert trace.samples[0].kv_bytes == held


# ------------------------------------------------------------------ packages


@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]
)
def test_torchao(config):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    small = copy.deepcopy(tiny())
    quantization.quantize_(small.model.language_model, getattr(quantization, config)())
    weight = small.model.language_model.layers[3].mlp.up_proj.weight
    assert "int8" in str(weight).lower() and type(weight) is not nn.Parameter
    rows = [prompt(3, 5, seed=1), prompt(9, 4, seed=2)]
    assert torch.equal(run(small, Full(), rows)[0], run(small, None, rows)[0])
    both, samples = run(small, METHOD, rows)
    assert samples[0].bytes_per_token == 2 * 4 * 8 * 4
    dynamic = "Dynamic" in config
    if not dynamic:

        def plain(linear):
            out = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
            out.weight = nn.Parameter(linear.weight.dequantize(), requires_grad=False)
            return out

        expected, of_plain = run(replaced(small, plain), METHOD, rows)
        torch.testing.assert_close(both, expected, **CLOSE)
        assert kept(samples) == kept(of_plain)
    with METHOD(small) as trace:
        alone = generate(small, rows[:1], pixels(2, 4)[:1])
    # Rounded activations: what is a hair apart can round to another integer.
    near = {"atol": 0.5, "rtol": 0} if dynamic else CLOSE
    torch.testing.assert_close(logits(alone)[:1, 0], both[:1, 0], **near)
    assert kept(trace.samples) == kept(samples[:1])
    with METHOD(small, engine=Engine("replay")) as trace:
        fast = generate(small, rows, pixels(2, 4))
    assert trace.paths["prefill:graph"] and not trace.paths["prefill:plain"]
    torch.testing.assert_close(logits(fast)[:, 0], both[:, 0], **near)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
def test_dynamic_quantisation_of_torch():
    """Deprecated there, in use all the same."""
    quantize = pytest.importorskip(
        "torch.ao.quantization", reason="this torch has no dynamic quantisation any more"
    ).quantize_dynamic
    if torch.backends.quantized.engine == "none":
        pytest.skip("this build of torch has no engine for quantised products")
    small = copy.deepcopy(tiny())
    small.model.language_model = quantize(
        small.model.language_model, {nn.Linear}, dtype=torch.qint8
    )
    assert callable(small.model.language_model.layers[0].self_attn.q_proj.weight)
    rows = [prompt(3, 5, seed=1)]
    assert torch.equal(run(small, Full(), rows)[0], run(small, None, rows)[0])
    out, samples = run(small, METHOD, rows)
    assert out.shape[0] == 5 and samples[0].bytes_per_token == 2 * 4 * 8 * 4
    assert samples[0].tokens_per_layer == run(tiny(), METHOD, rows)[1][0].tokens_per_layer
