"""A probe sees what the unpruned model has, on each family, and changes nothing."""

import pytest
import torch

from analysis.probe import Probe
from analysis.scores import ENCODER_SCORES, LLM_SCORES
from tests.visiondrop import models, next_models
from tests.visiondrop.models import IMAGE, LAYERS, PATCHES


def attention_of(model, rows, images):
    """Every layer's attention map of single prompts, by stock eager code: the slow oracle."""
    out = model(**models.batch(rows), pixel_values=images, output_attentions=True, use_cache=False)
    return out.attentions, out.logits


def read_all(view):
    return {name: score(view) for name, score in LLM_SCORES.items()}


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_scores_are_those_of_stock_attention_maps(tower):
    eager = models.tiny(tower, attention="eager", kv_heads=2)
    rows = [models.prompt(5, 7, seed=1)]
    images = models.pixels(1)
    maps, logits = attention_of(eager, rows, images)
    sdpa = models.tiny(tower, attention="sdpa", kv_heads=2)
    probe = Probe(tuple(range(LAYERS)), read_all)
    with probe(sdpa, keys=["one"]), torch.inference_mode():
        out = sdpa(**models.batch(rows), pixel_values=images, logits_to_keep=1)
    assert torch.allclose(out.logits[:, -1], logits[:, -1], atol=1e-4)
    readings = probe.take()
    assert [r.layer for r in readings] == list(range(LAYERS))
    start, end = 6, 6 + PATCHES
    length = len(rows[0])
    for reading in readings:
        full = maps[reading.layer][0].double().mean(0)
        expected = {
            "last_text": full[-1, start:end],
            "all_text": full[end:length, start:end].mean(0),
            "visual": full[start:end, start:end].mean(0),
        }
        uniform = torch.zeros(length, length, dtype=torch.double)
        for i in range(length):
            uniform[i, : i + 1] = 1 / (i + 1)
        even = uniform[start:end, start:end].mean(0)
        expected["visual_corrected"] = expected["visual"] / even
        for name, value in expected.items():
            found = torch.tensor(reading.values[name]).double()
            assert torch.allclose(found, value, rtol=1e-3, atol=1e-6), (name, reading.layer)
        assert reading.identity.tolist() == list(range(PATCHES))


def test_a_padded_batch_reads_what_singles_read():
    model = models.tiny()
    rows = [models.prompt(3, 4, seed=2), models.prompt(6, 9, seed=3), models.prompt(3, 4, seed=4)]
    images = models.pixels(3)

    def read(view):
        return {name: score(view) for name, score in ENCODER_SCORES.items()}

    def run(some, pictures, keys):
        probe = Probe((0, 3, 7), read_all, read)
        with probe(model, keys=keys), torch.inference_mode():
            model(**models.batch(some), pixel_values=pictures, logits_to_keep=1)
        return {(r.key, r.layer): r for r in probe.take()}

    together = run(rows, images, ["a", "b", "c"])
    assert len(together) == 3 * 4
    for i, key in enumerate("abc"):
        alone = run(rows[i : i + 1], images[i : i + 1], [key])
        for place, reading in alone.items():
            for name, value in reading.values.items():
                other = together[place].values[name]
                assert abs(value - other).max() < 1e-5 * max(1.0, abs(value).max()), (place, name)


def test_a_probe_drops_nothing_and_leaves_no_hook():
    model = models.tiny()
    rows, images = [models.prompt(4, 6)], models.pixels(1)
    plain = models.generate(model, rows, images)
    probe = Probe((2, 5), read_all, lambda view: {"cls": ENCODER_SCORES["cls"](view)})
    with probe(model) as trace:
        looked = models.generate(model, rows, images)
    assert torch.equal(plain.sequences, looked.sequences)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain.logits, looked.logits))
    assert trace.samples[0].tokens_per_layer == [PATCHES] * LAYERS
    assert IMAGE not in looked.sequences[0, len(rows[0]) :].tolist()
    again = models.generate(model, rows, images)
    assert torch.equal(plain.sequences, again.sequences)


@pytest.mark.parametrize("layers", [(8,), (-1,), (3, 2), (3, 3)])
def test_layers_that_are_none_are_refused(layers):
    with pytest.raises(ValueError, match="layer"):
        with Probe(layers, read_all)(models.tiny()):
            pass


def test_tiles_are_read_under_their_pictures_key():
    sizes = [(40, 20), (24, 24)]
    rows = [next_models.prompt(3, 4, seed=i, sizes=[size]) for i, size in enumerate(sizes)]
    model, images = next_models.tiny_next(), next_models.inputs(sizes, [0, 1])
    probe = Probe((2,), read_all, lambda view: {"cls": ENCODER_SCORES["cls"](view)})
    with probe(model, keys=["a/b", "c"]), torch.inference_mode():
        model(**models.batch(rows), **images, logits_to_keep=1)
    readings = probe.take()
    assert {(r.key, r.layer) for r in readings} == {(k, n) for k in ("a/b", "c") for n in (2, None)}
    for reading in readings:
        size = sizes[reading.key == "c"]
        grid = next_models.grid_of(size)
        if reading.layer is None:
            assert len(reading.values["cls"]) == grid.tiles * grid.side**2
        else:
            assert len(reading.identity) == next_models.unpruned(size)
