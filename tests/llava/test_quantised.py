"""8- and 4-bit loading, where bitsandbytes is installed (its CPU kernels want widths of 64 n)."""

import pytest
import torch

from llava.model.builder import load_pretrained_model
from tests.llava import forms
from visiondrop import Full, VisionDrop


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.set_num_threads(1)
    wide = dict(hidden_size=128, intermediate_size=128, num_key_value_heads=4)
    with pytest.MonkeyPatch.context() as patch:
        for settings in (forms.TEXT, forms.ORIGINAL):
            for name, value in wide.items():
                patch.setitem(settings, name, value)
        stock = forms.stock_model()
        folder = tmp_path_factory.mktemp("quantised") / "m"
        return stock, forms.write_v15(folder, stock, forms.sentencepiece_model())


@pytest.mark.parametrize(("option", "error"), [("load_8bit", 0.02), ("load_4bit", 0.12)])
def test_only_the_language_model_shrinks(checkpoint, option, error):
    import bitsandbytes

    stock, folder = checkpoint
    model = load_pretrained_model(
        str(folder), None, "x", device="cpu", torch_dtype=torch.float32, **{option: True}
    )[1]
    own = dict(model.named_modules())
    kinds = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
    for name, module in stock.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        inside = name.startswith("model.language_model.")
        assert isinstance(own[name], kinds) is inside, name
        if not inside:
            assert torch.equal(own[name].weight, module.weight)
            continue
        # What the layer computes against the plain one, not only what it stores.
        x = torch.randn(200, module.in_features, generator=torch.Generator().manual_seed(0))
        expected = module(x)
        assert (own[name](x).float() - expected).norm() / expected.norm() < error, name
    ids = torch.tensor([[1, 50, -200, 60]])
    picture = torch.randn(1, 3, forms.SIDE, forms.SIDE, generator=torch.Generator().manual_seed(1))
    options = dict(images=picture, max_new_tokens=3, do_sample=False)
    options |= dict(return_dict_in_generate=True, output_logits=True)
    expected = model.generate(ids, **options)
    with Full()(model):
        own = model.generate(ids, **options)
    assert all(map(torch.equal, own.logits, expected.logits))
    patches, layers = model.config.image_seq_length, model.config.text_config.num_hidden_layers
    with VisionDrop(encoder=(patches // 2, 1), llm={layers - 1: (patches // 4, 1)})(model) as trace:
        out = model.generate(ids, **options)
    sample = trace.samples[0]
    assert sample.tokens_per_layer[-1] == patches // 4 + 1 < sample.tokens_per_layer[0]
    held = [(one.keys, one.values) for one in out.past_key_values.layers]
    new = out.sequences.shape[1] - 1
    assert sample.kv_bytes == sum(t[:, :, new:].nbytes for pair in held for t in pair)


def test_widths_of_4_bit_products_on_a_cpu(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    stock = forms.stock_model()
    width = stock.config.text_config.hidden_size
    assert width % 64
    folder = forms.write_v15(tmp_path / "m", stock, forms.sentencepiece_model())
    options = dict(device="cpu", torch_dtype=torch.float32)
    with pytest.raises(ValueError, match=f"multiples of 64, .*q_proj reads {width}; use load_8bit"):
        load_pretrained_model(str(folder), None, "x", load_4bit=True, **options)
    load_pretrained_model(str(folder), None, "x", load_8bit=True, **options)
