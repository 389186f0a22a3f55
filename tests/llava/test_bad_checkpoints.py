"""What is wrong with a checkpoint is said by name, before anything heavy is done."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import llava.model.builder as builder
from llava.model.builder import load_config, load_pretrained_model
from tests.llava import forms


@pytest.fixture(scope="module")
def tokenizer_bytes():
    torch.set_num_threads(1)
    return forms.sentencepiece_model()


@pytest.fixture(scope="module")
def stock():
    return forms.stock_model()


@pytest.fixture
def original(tmp_path, stock, tokenizer_bytes):
    return forms.write_v15(tmp_path / "m", stock, tokenizer_bytes)


def load(folder, base=None, **options):
    return load_pretrained_model(str(folder), base and str(base), "any", device="cpu", **options)


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder, change):
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    for name in sorted(set(index["weight_map"].values())):
        state = torch.load(folder / name, weights_only=True)
        change(state)
        torch.save(state, folder / name)


@pytest.fixture
def no_building(monkeypatch):
    """Fails where a model is built: the error must come before."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was built")

    for kind in ("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"):
        monkeypatch.setattr(builder, kind, refuse)


def test_folder_that_does_not_exist(tmp_path, no_building):
    with pytest.raises(FileNotFoundError, match="nowhere.*does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json"):
        load(tmp_path)


def test_missing_shard(original, no_building):
    shard = "pytorch_model-00002-of-00002.bin"
    (original / shard).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks 1 of 2 weight files.*{shard}"):
        load(original)
    with pytest.raises(FileNotFoundError, match=shard):
        load_config(str(original))


def test_missing_shard_of_the_tower_and_missing_tower(tmp_path, original, no_building):
    (tmp_path / "tower" / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="tower holds no weights"):
        load(original)
    (tmp_path / "tower" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="tower"):
        load(original)


def test_missing_shard_in_stock_layout(tmp_path, stock, no_building):
    stock.save_pretrained(tmp_path / "s", max_shard_size="40KB")
    shards = sorted((tmp_path / "s").glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match=shards[0].name):
        load(tmp_path / "s")


@pytest.mark.parametrize(
    "names", [["Qwen2VLForConditionalGeneration"], ["LlavaMptForCausalLM"], []]
)
def test_other_architecture(original, names, no_building):
    edit(original, architectures=names, mm_vision_tower=None)
    with pytest.raises(ValueError, match=f"{names[0] if names else 'unknown'}.*LlavaLlama"):
        load(original)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(mm_projector_type="linear"), "linear.*mlp2x_gelu"),
        (dict(mm_vision_select_feature="last"), "mm_vision_select_feature is 'last'"),
        (dict(mm_patch_merge_type="rows"), "mm_patch_merge_type is 'rows'"),
    ],
)
def test_settings_that_the_stock_class_lacks(original, changes, said, no_building):
    edit(original, **changes)
    with pytest.raises(ValueError, match=said):
        load(original)


def test_tower_of_another_family(tmp_path, original, no_building):
    edit(tmp_path / "tower", model_type="siglip")
    with pytest.raises(ValueError, match="siglip"):
        load(original)


def test_broken_json(original, no_building):
    (original / "config.json").write_text('{"architectures": [')
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        load(original)


def test_unexpected_key_is_named(original):
    edit_weights(
        original, lambda state: state.update({"model.visual_prompt.weight": torch.ones(2)})
    )
    with pytest.raises(ValueError, match="unexpected: model.visual_prompt.weight"):
        load(original)


def test_missing_key_is_named(original):
    edit_weights(original, lambda state: state.pop("model.layers.1.mlp.up_proj.weight", None))
    with pytest.raises(ValueError, match="missing: .*layers.1.mlp.up_proj.weight"):
        load(original)


def test_unequal_shape_is_named(original):
    edit(original, vocab_size=forms.VOCABULARY + 8)
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \(400, 32\)"):
        load(original)


def test_missing_and_unexpected_in_stock_layout(tmp_path, stock, tokenizer_bytes):
    folder = tmp_path / "s"
    stock.save_pretrained(folder)
    forms.write_tokenizer(folder, tokenizer_bytes, tokenizer_class="LlamaTokenizer")
    state = load_file(folder / "model.safetensors")
    taken = next(key for key in state if key.endswith("layers.1.mlp.up_proj.weight"))
    state["something.else"] = state.pop(taken)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing: .*up_proj.weight.*unexpected: something.else"):
        load(folder)


def test_truncated_file(original):
    file = original / "pytorch_model-00001-of-00002.bin"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{file.name} cannot be read"):
        load(original)


def test_a_pickle_that_would_run_code_is_refused(original, tmp_path):
    import pickle

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    file = original / "pytorch_model-00001-of-00002.bin"
    with open(file, "wb") as opened:
        pickle.dump({"model.norm.weight": Attack()}, opened)
    with pytest.raises(ValueError, match="cannot be read"):
        load(original)
    assert not (tmp_path / "written").exists()


def test_no_tokenizer(original):
    (original / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        load(original)


def test_model_base_where_none_belongs(tmp_path, original, stock, tokenizer_bytes, no_building):
    base = forms.write_vicuna(tmp_path / "vicuna", stock, tokenizer_bytes)
    with pytest.raises(FileNotFoundError, match="mm_projector.bin"):
        load(original, base)
    stock.save_pretrained(tmp_path / "s")
    with pytest.raises(ValueError, match="model_base"):
        load(tmp_path / "s", base)


def test_quantisation_without_bitsandbytes(original, no_building):
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    for option in ("load_8bit", "load_4bit"):
        with pytest.raises(ImportError, match="pip install bitsandbytes"):
            load(original, **{option: True})
    with pytest.raises(ValueError, match="exclude each other"):
        load(original, load_8bit=True, load_4bit=True)


def test_device_that_is_not_there(original, no_building):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="no GPU"):
        load_pretrained_model(str(original), None, "any", device="cuda")
