"""The Triton kernels agree with the plain versions; without a GPU they run in Triton's interpreter.

They skip where Triton is not installed (the extra "kernels"). Which way was taken is counted.
"""

import pytest
import torch

from tests.visiondrop import models
from visiondrop import VisionDrop, kernels, scoring
from visiondrop.kernels import CALLS

INTERPRETED = not torch.cuda.is_available()
needs_triton = pytest.mark.skipif(
    not kernels.triton_found(), reason="Triton is not installed: pip install 'visiondrop[kernels]'"
)
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def column_sums():
    from visiondrop.kernels.column_sums import column_sums

    return column_sums


def inputs(groups, heads, shared, n, total, size, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    # As the projections give them: heads behind tokens, so that strides are no contiguous tensor's.
    query = draw(groups, n, heads, size).transpose(1, 2)
    key = draw(groups, total, heads // shared, size).transpose(1, 2)
    return query.to(DEVICE, dtype), key.to(DEVICE, dtype)


def loops(query, key, scale, places, masked):
    """The definition, row by row in float64."""
    groups, heads, n, _ = query.shape
    shared = heads // key.shape[1]
    out = torch.zeros(groups, n, dtype=torch.float64)
    for g in range(groups):
        for h in range(heads):
            for i in range(n):
                logits = key[g, h // shared].double() @ query[g, h, i].double() * scale
                if masked:
                    logits[int(places[i]) + 1 :] = -torch.inf
                out[g] += logits.softmax(0)[places].cpu() / heads
    return out


CASES = [
    # groups, heads, heads that share a key, n, N, head size
    (1, 2, 1, 70, 105, 16),
    (2, 4, 2, 65, 65, 32),
    (1, 4, 4, 130, 150, 40),
    (2, 1, 1, 1, 7, 64),
    (1, 2, 1, 64, 128, 128),
]


@needs_triton
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_column_sums_are_the_definition(column_sums, case, dtype, masked):
    query, key = inputs(*case, dtype, seed=sum(case))
    n, total = case[3], case[4]
    places = torch.arange(total - n, total)
    scale = case[5] ** -0.5
    got = column_sums(query, key, scale, places, masked).double().cpu()
    expected = loops(query, key, scale, places, masked)
    assert ((got - expected).abs() / expected).max() < 1e-3
    assert torch.isclose(got.sum(), expected.sum(), rtol=1e-5)


@needs_triton
def test_tokens_with_others_between_them(column_sums):
    """The newlines of any-resolution pictures stand between visual tokens."""
    query, key = inputs(1, 2, 1, 60, 90, 32, torch.float32, seed=3)
    places = torch.randperm(90, generator=torch.Generator().manual_seed(1))[:60].sort().values
    got = column_sums(query, key, 0.2, places, True).double().cpu()
    expected = loops(query, key, 0.2, places, True)
    assert ((got - expected).abs() / expected).max() < 1e-5
    plain = scoring.scattered_column_sums(query, key, 0.2, True, places.to(DEVICE)).double().cpu()
    assert ((got - plain).abs() / plain).max() < 1e-4


@needs_triton
def test_large_logits_do_not_overflow(column_sums):
    query, key = inputs(1, 2, 1, 40, 60, 16, torch.float32, seed=5)
    places = torch.arange(20, 60)
    got = column_sums(query * 100, key, 1.0, places, True).double().cpu()
    expected = loops(query * 100, key, 1.0, places, True)
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max() < 1e-3


@needs_triton
@pytest.mark.parametrize("correction", ["off", "expectation", "no_mask", "visible"])
@pytest.mark.parametrize("lone", [True, False])
def test_a_whole_run_keeps_the_same_tokens_on_either_way(
    column_sums, monkeypatch, correction, lone
):
    """VisionDrop on a tiny grouped-query model, left-padded pairs: both ways, and which it was."""
    model = models.tiny(kv_heads=2).to(DEVICE)
    rows = [models.prompt(5, 7, seed=1), models.prompt(2, 3, seed=2)][: 1 if lone else 2]
    images = models.pixels(len(rows)).to(DEVICE)
    method = VisionDrop(encoder=(20, 4), llm={2: (14, 3), 5: (8, 2)}, causal=correction)

    def run():
        with method(model) as trace:
            batch = {k: v.to(DEVICE) for k, v in models.batch(rows).items()}
            out = model(**batch, pixel_values=images, logits_to_keep=1)
        return out.logits, trace

    monkeypatch.setenv("VISIONDROP_KERNELS", "off")
    before = CALLS.copy()
    plain, plain_trace = run()
    assert (CALLS - before)["column_mean:triton"] == 0
    assert plain_trace.paths["column_mean:chunks"] > 0
    monkeypatch.delenv("VISIONDROP_KERNELS")
    if INTERPRETED:
        monkeypatch.setattr(scoring, "column_sums_usable", lambda query: True)
    fast, trace = run()
    assert trace.paths["column_mean:triton"] == plain_trace.paths["column_mean:chunks"]
    assert trace.paths["column_mean:chunks"] == 0
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    for one, other in zip(trace.samples, plain_trace.samples):
        assert [s.to_dict() for s in one.stages] == [s.to_dict() for s in other.stages]


def test_without_a_gpu_the_plain_version_is_taken(monkeypatch):
    query, key = inputs(1, 2, 1, 4, 6, 8, torch.float32, seed=1)
    query, key = query.cpu(), key.cpu()
    assert not kernels.column_sums_usable(query)
    before = CALLS.copy()
    scoring.column_mean(query, key, 0.3)
    assert CALLS - before == {"column_mean:chunks": 1}


def test_the_switch_is_read_each_time(monkeypatch):
    class OnGpu:
        is_cuda, dtype, shape, device = True, torch.float16, (1, 1, 4, 64), None

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(kernels, "triton_found", lambda: True)
    assert kernels.column_sums_usable(OnGpu())
    for off in ("off", "0", "plain"):
        monkeypatch.setenv("VISIONDROP_KERNELS", off)
        assert not kernels.column_sums_usable(OnGpu())
    monkeypatch.setenv("VISIONDROP_KERNELS", "")
    for other in ({"dtype": torch.float64}, {"shape": (1, 1, 4, 512)}, {"is_cuda": False}):
        assert not kernels.column_sums_usable(type("Other", (OnGpu,), other)())
    monkeypatch.setattr(kernels, "triton_found", lambda: False)
    assert not kernels.column_sums_usable(OnGpu())
