"""Average pooling against torch's own pools and a slow loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.visiondrop.models import LAYERS, PATCHES, generate, logits, pixels, prompt, tiny
from visiondrop.functional.pooling import average_windows
from visiondrop.methods import build_method
from visiondrop.methods.pool import Pool

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def loop(features: list[list[float]], stride: float) -> tuple[list[list[float]], list[int]]:
    """One picture in its sequence: window by window; also each window's middle (lower of two)."""
    total = len(features)
    if stride == int(stride):
        windows = []
        while (len(windows) + 1) * int(stride) <= total:
            first = len(windows) * int(stride)
            windows.append(list(range(first, first + int(stride))))
    else:
        count = round(total / stride)
        windows = [
            [p for p in range(total) if p + 1 > i * total / count and p < (i + 1) * total / count]
            for i in range(count)
        ]
    out = [
        [sum(features[p][d] for p in w) / len(w) for d in range(len(features[0]))] for w in windows
    ]
    return out, [int(sum(w) / len(w)) for w in windows]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stride", [1, 3, 5, 2.5, 7.2, 11.99])
def test_along_the_sequence_equals_a_loop(seed: int, stride: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 31, 4, generator=draw)
    sizes = torch.ones(2, 31, dtype=torch.long)
    out = average_windows(features, sizes, stride)
    for g in range(2):
        expected, middles = loop(features[g].tolist(), stride)
        torch.testing.assert_close(out.features[g], torch.tensor(expected), **CLOSE)
        # LLaVolta averages position ids and floors: the position of the middle token.
        assert out.source[g].tolist() == middles
    remainder = 31 % int(stride) if stride == int(stride) else 0
    assert int(out.sizes.sum()) == 2 * (31 - remainder)
    assert int((out.target < 0).sum()) == 2 * remainder


@pytest.mark.parametrize("stride", [1, 2, 3, 2.4, 5.5])
def test_pools_are_those_of_torch(stride: float) -> None:
    """AvgPool1d and AvgPool2d for whole strides, adaptive pools for others; in float64 too."""
    features = torch.randn(2, 66, 4, dtype=torch.float64)
    sizes = torch.ones(2, 66, dtype=torch.long)
    line = average_windows(features, sizes, stride).features
    plane = average_windows(features, sizes, stride, (6, 11)).features
    channels = features.transpose(1, 2)
    grid = channels.unflatten(2, (6, 11))
    if stride == int(stride):
        expected = F.avg_pool1d(channels, int(stride))
        flat = F.avg_pool2d(grid, int(stride)).flatten(2)
    else:
        expected = F.adaptive_avg_pool1d(channels, round(66 / stride))
        flat = F.adaptive_avg_pool2d(grid, (round(6 / stride), round(11 / stride))).flatten(2)
    assert line.dtype == torch.float64
    torch.testing.assert_close(line, expected.transpose(1, 2))
    torch.testing.assert_close(plane, flat.transpose(1, 2))


def test_windows_of_a_grid_know_their_members() -> None:
    features = torch.randn(1, 24, 3)
    out = average_windows(features, torch.ones(1, 24, dtype=torch.long), 2, (4, 6))
    assert out.target[0].view(4, 6).tolist() == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 1, 1, 2, 2],
        [3, 3, 4, 4, 5, 5],
        [3, 3, 4, 4, 5, 5],
    ]
    assert out.source.tolist() == [[0, 2, 4, 12, 14, 16]] and (out.sizes == 4).all()
    assert out.contextual.all()


def test_pooling_before_layer_k_by_hand() -> None:
    """Layers 0 and 1 whole; then the pooled states at the floored mean positions through the rest
    of the decoder, layer by layer.
    """
    model, row, images = tiny(), prompt(3, 6, 1), pixels(1)
    with Pool(5, layer=2)(model):
        out = generate(model, [row], images, max_new_tokens=1, min_new_tokens=1)
    decoder, at = model.model.language_model, row.index(90)
    with torch.no_grad():
        visual = model.model.get_image_features(images).pooler_output[0]
        hidden = model.get_input_embeddings()(torch.tensor([row]))
        hidden[0, at : at + PATCHES] = visual
        positions = torch.arange(len(row))[None]
        for index, layer in enumerate(decoder.layers):
            if index == 2:
                states = hidden[:, at : at + 35].view(1, 7, 5, -1).mean(2)
                where = positions[:, at : at + 35].view(1, 7, 5).float().mean(2).floor().long()
                hidden = torch.cat([hidden[:, :at], states, hidden[:, at + PATCHES :]], 1)
                positions = torch.cat([positions[:, :at], where, positions[:, at + PATCHES :]], 1)
            length = hidden.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            rope = decoder.rotary_emb(hidden, position_ids=positions)
            hidden = layer(hidden, attention_mask=mask, position_ids=None, position_embeddings=rope)
        expected = model.lm_head(decoder.norm(hidden)[:, -1])
    torch.testing.assert_close(out.logits[0], expected, atol=2e-4, rtol=1e-4)


def test_layer_0_differs_from_the_projector_by_nothing_but_positions() -> None:
    """Pooled before the LLM at the original positions, or as a shorter input."""
    model, rows, images = tiny(), [prompt(3, 6, 1)], pixels(1)
    outs = []
    for positions in ("original", "renumbered"):
        with Pool(4, layer=0, positions=positions)(model) as trace:  # type: ignore[arg-type]
            outs.append(logits(generate(model, rows, images)))
        assert trace.samples[0].tokens_per_layer == [9] * LAYERS
    assert not torch.allclose(outs[0], outs[1])


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(1, 576), depth=st.sampled_from([4, 8, 32]))
def test_average_is_met_by_some_stride(tokens: int, depth: int) -> None:
    before = Pool.from_average(tokens, num_layers=depth, layer=0)
    assert before.ledger(depth) == [tokens] * depth
    try:
        inside = Pool.from_average(tokens, num_layers=depth)
    except ValueError as error:
        assert "not reachable, least is" in str(error) and tokens < 575 / depth + 2
        return
    assert abs(inside.mean_tokens(depth) - tokens) <= 0.5
    assert len(set(inside.ledger(depth))) <= 2


def test_over_the_grid_the_nearest_square_is_reached() -> None:
    geometry = {"num_layers": 32, "layer": 0, "dims": "2d"}
    assert Pool.from_average(64, **geometry).stride == 3
    assert Pool.from_average(128, **geometry).ledger(32) == [121] * 32
    assert Pool.from_average(32, **geometry).ledger(32) == [36] * 32


def test_presets_and_nominal() -> None:
    geometry = {"num_layers": 32, "num_patches": 576}
    assert Pool.from_nominal(72, **geometry) == Pool(8, layer=2)
    assert Pool(**Pool.presets["llavolta"]).ledger(32) == [576] * 2 + [72] * 30
    model = tiny()
    assert build_method("pool@before", model=model).ledger(LAYERS, PATCHES) == [4] * LAYERS
    assert build_method("pool", model=model, args={"stride": "6", "layer": "1"}).check  # typed


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"stride": 0.5}, "stride=0.5; give 1 to 36"),
        ({"stride": 37}, "stride=37"),
        ({"stride": 7, "dims": "2d"}, "stride=7; give 1 to 6"),
        ({"layer": LAYERS}, "layer=8"),
        ({"layer": -1}, "layer=-1"),
    ],
)
def test_bad_fields_are_refused_before_compute(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words), Pool(**fields)(tiny()):
        raise AssertionError("entered")


def test_grid_pooling_of_a_reduced_picture_is_refused() -> None:
    from visiondrop import Uniform

    method = Uniform(20, positions="original") + Pool(2, layer=2, dims="2d")
    with pytest.raises(ValueError, match="needs the whole grid"), method(tiny()):
        generate(tiny(), [prompt(3, 6, 1)], pixels(1))


def test_stride_beside_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="both given"):
        Pool.from_average(64, num_layers=32, stride=3)
