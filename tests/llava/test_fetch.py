"""A hub id goes through huggingface_hub; what it asks for, without a network."""

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from llava.model.builder import load_pretrained_model
from llava.model.fetch import local_folder
from tests.llava import forms


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the repositories that lie as folders below `tmp_path / "hub"`."""
    calls = []

    def snapshot_download(name, allow_patterns=None, ignore_patterns=None):
        calls.append((name, allow_patterns, ignore_patterns))
        folder = tmp_path / "hub" / name
        if not folder.is_dir():
            raise LocalEntryNotFoundError(f"no {name}")
        return str(folder)

    class Api:
        def list_repo_files(self, name):
            return [file.name for file in (tmp_path / "hub" / name).iterdir()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return calls


def test_model_and_tower_by_hub_id(tmp_path, hub):
    torch.set_num_threads(1)
    stock = forms.stock_model()
    folder = tmp_path / "hub" / "owner" / "llava"
    forms.write_v15(folder, stock, forms.sentencepiece_model(), mm_vision_tower="clip/tower")
    (tmp_path / "hub" / "clip").mkdir()
    (folder.parent / "tower").rename(tmp_path / "hub" / "clip" / "tower")
    model = load_pretrained_model("owner/llava", None, "llava", device="cpu")[1]
    expected = stock.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert [name for name, *_ in hub] == ["owner/llava"] * 2 + ["clip/tower"] * 2
    assert hub[0][1] == ["config.json"]  # the configuration first
    assert "*.bin" not in hub[1][2]


def test_bin_files_stay_where_safetensors_are(tmp_path, hub):
    folder = tmp_path / "hub" / "owner" / "both"
    folder.mkdir(parents=True)
    for name in ("config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"):
        (folder / name).touch()
    assert local_folder("owner/both") == folder
    assert "*.bin" in hub[1][2]


def test_what_is_neither_here_nor_there(tmp_path, hub):
    with pytest.raises(FileNotFoundError, match="owner/none is no folder here"):
        local_folder("owner/none")
    with pytest.raises(FileNotFoundError, match="no hub id"):
        local_folder("./owner/none")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileNotFoundError, match="is a file"):
        local_folder(file)
    (tmp_path / "hub" / "owner" / "empty").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="owner/empty holds no config.json"):
        local_folder("owner/empty")
