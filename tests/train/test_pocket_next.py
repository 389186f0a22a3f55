"""The any-resolution pocket model: its training against the stock classes, and what is shipped."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from llava.train import export_pocket, pocket_next
from llava.train.evaluate_next import NextScorer
from llava.train.evaluate_pocket import read_set
from llava.train.pocket_data import IGNORE, Phase, normalize
from llava.train.pocket_forward import attend, attend_causal
from llava.train.pocket_next_data import PocketNextData
from llava.train.pocket_next_model import NextAnswers, load_tokenizer, make_next
from llava.train.pocket_next_pictures import (
    PINPOINTS,
    cut,
    draw_size,
    grid_of,
    rows_of_squares,
)

ROOT = Path(__file__).resolve().parents[2]
SQUARE = ROOT / "checkpoints" / "pocket-llava"
SHIPPED = ROOT / "checkpoints" / "pocket-llava-next"
DATA = ROOT / "playground" / "data" / "eval_anyres" / "textvqa"
SIZES = [(672, 672), (672, 336), (336, 336), (504, 672), (1008, 252)]


@pytest.fixture(scope="module")
def model():
    return make_next(SQUARE).eval()


def picture(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_and_rows_are_the_stock_ones(size, model):
    """Tiles as the stock processor cuts them; the order as the stock packing has it, told by
    features that hold their own number."""
    pixels = picture(size)
    tiles = cut(pixels, 24, np.random.default_rng(0))
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    stock = processor(Image.fromarray(pixels), return_tensors="pt")
    ours = normalize(torch.from_numpy(tiles.pixels))
    assert torch.allclose(ours, stock["pixel_values"][0], atol=0.02)  # black is rounded otherwise
    number = torch.arange(len(tiles.pixels) * 576, dtype=torch.float32).view(-1, 576, 1)
    newline = torch.tensor([float(number.numel())])
    packed, _ = model.model.pack_image_features(
        [number], stock["image_sizes"], "default", image_newline=newline
    )
    assert packed[0][:, 0].int().tolist() == tiles.order.tolist()
    assert tiles.where.tolist() == list(range(len(tiles.order))) and tiles.span == len(tiles.order)
    assert grid_of(size).unpruned == len(tiles.order)


@pytest.mark.parametrize("seed", range(6))
def test_small_tiles_are_windows_on_full_ones(seed):
    """Rows of a picture of small tiles stand where the same patch of the full picture stands."""
    rng = np.random.default_rng(seed)
    size = draw_size(12, rng)
    tiles = cut(picture(size), 12, rng)
    full = cut(picture((2 * size[0], 2 * size[1])), 24, rng)
    assert len(full.order) == tiles.span and len(set(tiles.where.tolist())) == len(tiles.where)
    for row, at in zip(tiles.order, tiles.where, strict=True):
        tile, patch = divmod(int(row), 144)
        if tile < len(tiles.pixels):
            own = tile * 576 + int(tiles.grid_ids[tile, patch])
            assert full.order[at] == own
        else:
            assert full.order[at] == len(full.pixels) * 576
    shown = tiles.order[tiles.squares]
    row, column = np.divmod(np.arange(len(shown)), size[0] // 14)
    for square in range(0, len(shown), 7):
        tile, patch = divmod(int(shown[square]), 144)
        y, x = divmod(patch, 12)
        there = tiles.pixels[tile, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
        r, c = 14 * row[square], 14 * column[square]
        assert np.array_equal(there, picture(size)[r : r + 14, c : c + 14])


def test_a_picture_that_would_be_scaled_is_refused():
    with pytest.raises(ValueError, match="would be scaled"):
        cut(picture((500, 300)), 24, np.random.default_rng(0))


@pytest.mark.parametrize("size", SIZES)
def test_squares_are_found_among_the_rows(size):
    tiles, grid = cut(picture(size), 24, np.random.default_rng(0)), grid_of(size)
    columns = size[0] // 14
    for square in range(0, len(tiles.squares), 101):
        assert rows_of_squares([square], columns, grid) == [tiles.squares[square]]


def test_squares_of_a_scaled_picture_are_where_their_pixels_go():
    """By the stock processor: a white square on black lights up the rows that are named."""
    size, columns = (500, 300), 36
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=PINPOINTS, do_normalize=False,
    )  # fmt: skip
    grid = grid_of(size)
    r0, r1, c0, c1 = grid.window
    for row, column in ((0, 0), (5, 30), (21, 17), (11, 35)):
        pixels = np.zeros((300, 500, 3), np.uint8)
        pixels[14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = 255
        tiles = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0][1:]
        whole = np.concatenate(list(tiles.mean(1)), axis=1)
        light = whole.reshape(24, 14, 48, 14).mean(axis=(1, 3))[r0:r1, c0:c1]
        rows = rows_of_squares([row * columns + column], columns, grid)
        named = np.zeros_like(light)
        for at in rows:
            named[divmod(at - 576, c1 - c0 + 1)] = 1
        assert (light * named).sum() > 0.7 * light.sum() and len(rows) <= 6


def test_causal_attention_in_chunks_is_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 130, 8)
    off = torch.full((130, 130), torch.finfo(torch.float32).min).triu(1)
    for chunk in (30, 64, 130):
        assert torch.allclose(attend_causal(q, k, v, chunk), attend(q, k, v, off), atol=1e-6)


def test_packed_questions_get_the_stock_logits(model):
    """The loss of a training picture's first question against the stock forward on its prompt."""
    tokenizer = load_tokenizer(SQUARE)
    phase = Phase("t", 24, 1, 1, 1, 60, frozen=True)
    data = PocketNextData(phase, 0, 5, tokenizer)
    # One tile's size: the thumbnail and one crop without padding, the other all padding.
    item = next(b for b in (data[i] for i in range(30)) if b["order"].numel() == 1176)
    n = item["order"].numel()
    item |= {"where": torch.arange(n)[None], "span": torch.tensor(n)}
    first = int((item["seg"][0] == 0).sum())
    item["labels"][0, first:] = IGNORE
    picture = torch.full((n,), model.config.image_token_id)
    ids = torch.cat([item["prefix"], picture, item["ids"][0, :first]])
    answers = NextAnswers(model)
    answers.weights = torch.ones_like(answers.weights)
    with torch.no_grad():
        stock = model(
            input_ids=ids[None],
            pixel_values=normalize(item["pixels"])[None],
            image_sizes=torch.tensor([(336, 336)]),
        ).logits[0, -first:-1]
        labels = item["labels"][0, 1:first]
        loss = torch.nn.functional.cross_entropy(stock, labels, ignore_index=IGNORE)
        ours, _, _ = answers.text_loss(answers.picture(item), item["where"], item["span"], item)
    assert (labels != IGNORE).any() and abs(float(loss) - float(ours)) < 1e-4


def run(folder: Path, monkeypatch, *flags: str) -> None:
    monkeypatch.setattr(
        sys, "argv",
        ["pocket_next", "--run", str(folder), "--config", "tiny", "--source", str(SQUARE),
         "--log-every", "1", "--device", "cpu", *flags],
    )  # fmt: skip
    pocket_next.main()


def test_a_tiny_run_resumes_identically_and_exports(tmp_path, monkeypatch):
    """Stopped after one step or not: the same weights bit for bit, which load and whose tower is
    the pocket model's."""
    run(tmp_path / "whole", monkeypatch)
    run(tmp_path / "parts", monkeypatch, "--steps", "1")
    run(tmp_path / "parts", monkeypatch)
    a, b = (load_file(tmp_path / k / "model-0000003.safetensors") for k in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    logs = [
        [json.loads(x) | {"pictures_per_second": 0} for x in (tmp_path / k / "log.jsonl").open()]
        for k in ("whole", "parts")
    ]
    assert logs[0] == logs[1] and [x["total"] for x in logs[0]] == [1, 2, 3]
    before = make_next(SQUARE).state_dict()
    moved = {k for k in before if not torch.equal(a["llava." + k], before[k])}
    assert moved and not any("vision_tower" in k for k in moved)
    assert "model.image_newline" in moved

    out = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["export_pocket", "--run", str(tmp_path / "parts"), "--out", str(out)]
    )
    export_pocket.main()
    loaded = LlavaNextForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.equal(loaded[k], a["llava." + k].bfloat16()) for k in loaded)
    record = json.loads((out / "TRAINING.json").read_text())
    assert record["steps"] == 3 and record["phases"] == {"tiles-12": 2, "tiles-12-end": 1}


def test_the_curriculum_trains_full_tiles_last_with_the_tower_frozen():
    phases = pocket_next.CURRICULA["pocket"]
    assert [p.grid for p in phases] == [12, 24] and phases[-1].decay
    assert all(p.frozen for p in phases)


def test_the_shipped_weights_are_those_that_the_record_names():
    record = json.loads((SHIPPED / "TRAINING.json").read_text())
    weights = SHIPPED / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["sha256"][weights.name]
    assert weights.stat().st_size == record["bytes"] < 15e6
    lines = (SHIPPED / "training_log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["total"] <= record["steps"]
    source = (SQUARE / "model.safetensors").read_bytes()
    assert hashlib.sha256(source).hexdigest() == record["source_sha256"]


def test_the_shipped_tower_is_the_pocket_models_bit_for_bit():
    a, b = (load_file(folder / "model.safetensors") for folder in (SQUARE, SHIPPED))
    tower = [k for k in a if "vision_tower" in k]
    assert tower and all(torch.equal(a[k], b[k]) for k in tower)
    assert (SQUARE / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()


def test_both_front_ends_answer_right():
    """The stock processor and class, and LLaVA's own loader, word for word."""
    from transformers import AutoProcessor

    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token
    from llava.model.builder import load_pretrained_model

    processor = AutoProcessor.from_pretrained(SHIPPED)
    stock = LlavaNextForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    tokenizer, ours, images, _ = load_pretrained_model(
        str(SHIPPED), None, "llava-next", device="cpu", torch_dtype=torch.float32
    )
    rows = [r for r in read_set(DATA, 0) if r["type"] in ("letter", "number", "color", "shape")]
    right = 0
    for r in rows[8:11]:
        conv = conv_templates["vicuna_v1"].copy()
        conv.append_message(conv.roles[0], f"<image>\n{r['prompt']}")
        conv.append_message(conv.roles[1], None)
        image = Image.open(DATA / "train_images" / r["image"]).convert("RGB")
        inputs = processor(images=image, text=conv.get_prompt(), return_tensors="pt")
        out = stock.generate(**inputs, do_sample=False, max_new_tokens=8)
        text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ids = tokenizer_image_token(
            conv.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
        )
        out = ours.generate(
            ids[None], images=process_images([image], images, ours.config),
            image_sizes=[image.size], do_sample=False, max_new_tokens=8,
        )  # fmt: skip
        assert tokenizer.batch_decode(out, skip_special_tokens=True)[0].strip() == text.strip()
        right += text.strip() == r["answer"]
    assert right == 3


def test_tiles_matter():
    """Signs and shapes are read from the crops; the thumbnail alone does not show them."""
    rows = [r for r in read_set(DATA, 60) if r["type"] in ("letter", "number", "word", "shape")]
    scorer = NextScorer(SHIPPED, "cpu")
    by_picture: dict[str, list[dict]] = {}
    for r in rows:
        by_picture.setdefault(r["image"], []).append(r)
    full, small = [], []
    for image, some in list(by_picture.items())[:5]:
        feats = scorer.picture(Image.open(DATA / "train_images" / image).convert("RGB"))
        full += scorer.right(feats, some)
        small += scorer.right(feats[:576], some)
    assert len(full) >= 9 and np.mean(full) > 0.75 and np.mean(full) > np.mean(small) + 0.4
