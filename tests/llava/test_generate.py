"""LLaVA's way of calling `generate`: batches, several pictures, text only, penalties, refusals."""

import copy

import pytest
import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from tests.llava import forms

GREEDY = dict(do_sample=False, max_new_tokens=6)
FULL = dict(GREEDY, return_dict_in_generate=True, output_logits=True)
X = IMAGE_TOKEN_INDEX


@pytest.fixture(scope="module")
def stock():
    torch.set_num_threads(1)
    return forms.stock_model()


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request, stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("form") / "m"
    forms.write_v15(folder, stock, forms.sentencepiece_model())
    return load_pretrained_model(
        str(folder), None, "m", device="cpu", torch_dtype=torch.float32,
        attn_implementation=request.param,
    )[1]  # fmt: skip


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 3, forms.SIDE, forms.SIDE, generator=generator)


ROWS = [
    [1, 50, X, 60, 61, 62],  # one picture
    [1, X, 70, X, 71, X, 72, 73, 74, 75],  # three, one after the other
    [1, 80, 81],  # none
]


def test_unequal_rows_equal_singles(model, pictures):
    rows = [torch.tensor(row) for row in ROWS]
    batch = model.generate(rows, images=pictures, **FULL)
    assert batch.sequences.shape == (3, 6)
    split = [pictures[:1], pictures[1:], None]
    for i, row in enumerate(rows):
        single = model.generate(row[None], images=split[i], **FULL)
        assert torch.equal(single.sequences[0], batch.sequences[i])
        for step in range(6):
            torch.testing.assert_close(
                batch.logits[step][i], single.logits[step][0], atol=1e-4, rtol=1e-4
            )


def test_padding_on_either_side_needs_the_mask(model, pictures):
    rows = [torch.tensor(row) for row in ROWS]
    expected = model.generate(rows, images=pictures, **GREEDY)
    width = max(map(len, ROWS))
    left = torch.tensor([[9] * (width - len(row)) + row for row in ROWS])
    right = torch.tensor([row + [9] * (width - len(row)) for row in ROWS])
    for ids in (left, right):
        mask = (ids != 9).long()
        got = model.generate(ids, images=list(pictures), attention_mask=mask, **GREEDY)
        assert torch.equal(got, expected)
    assert not torch.equal(model.generate(left, images=pictures, **GREEDY), expected)


def test_order_of_pictures_matters(model, pictures):
    ids = torch.tensor([ROWS[1]])
    there = model.generate(ids, images=pictures[:3], **FULL).logits[0]
    back = model.generate(ids, images=pictures[:3].flip(0), **FULL).logits[0]
    assert (there - back).abs().max() > 1e-2


def test_images_as_tensor_list_or_rows(model, pictures):
    rows = [torch.tensor(row) for row in ROWS]
    expected = model.generate(rows, images=pictures, **GREEDY)
    lists = [[pictures[0]], [pictures[1], pictures[2], pictures[3]], []]
    for images in (list(pictures), lists, [p[None] for p in pictures], pictures[:, None]):
        assert torch.equal(model.generate(rows, images=images, **GREEDY), expected)


def test_text_only_is_the_language_model_alone(model, stock):
    ids = torch.tensor([ROWS[2]])
    language = transformers.LlamaForCausalLM(stock.config.text_config)
    language.load_state_dict(forms.language_state(stock))
    expected = language.eval().generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    for images in (None, [], torch.zeros(0, 3, forms.SIDE, forms.SIDE)):
        assert torch.equal(model.generate(ids, images=images, **GREEDY), expected[:, 3:])


def test_marker_and_picture_counts_must_agree(model, pictures):
    rows = [torch.tensor(row) for row in ROWS]
    with pytest.raises(ValueError, match=r"4 picture marker.*3 picture"):
        model.generate(rows, images=pictures[:3], **GREEDY)
    with pytest.raises(ValueError, match=r"1 picture marker.*0 picture"):
        model.generate(torch.tensor([ROWS[0]]), **GREEDY)
    with pytest.raises(ValueError, match=r"0 picture marker.*1 picture"):
        model.generate(torch.tensor([ROWS[2]]), images=pictures[:1], **GREEDY)


def test_wrong_shapes_are_refused(model, pictures):
    with pytest.raises(ValueError, match="attention_mask"):
        model.generate(torch.tensor([ROWS[2]]), attention_mask=torch.ones(1, 5), **GREEDY)
    with pytest.raises(ValueError, match="one-dimensional"):
        model.generate(torch.zeros(1, 2, 3, dtype=torch.long), **GREEDY)
    with pytest.raises(ValueError, match="images must be"):
        model.generate(torch.tensor([ROWS[0]]), images=pictures[0, 0], **GREEDY)
    with pytest.raises(ValueError, match="empty"):
        model.generate([], **GREEDY)


def test_a_stock_call_does_what_the_stock_class_does(model, stock, pictures):
    """With its own placeholder id, prompt included in what comes back."""
    token = model.config.image_token_id
    ids = torch.tensor([[1, 50] + [token] * forms.PATCHES + [60, 61]])
    own = model.generate(
        input_ids=ids, pixel_values=pictures[:1], attention_mask=torch.ones_like(ids), **GREEDY
    )
    assert torch.equal(own[:, : ids.shape[1]], ids)
    theirs = ids.masked_fill(ids == token, forms.STOCK_IMAGE_TOKEN)
    expected = stock.generate(
        input_ids=theirs, pixel_values=pictures[:1], attention_mask=torch.ones_like(ids), **GREEDY
    )
    assert torch.equal(own[:, ids.shape[1] :], expected[:, ids.shape[1] :])
    text = torch.tensor([ROWS[2]])
    assert model.generate(input_ids=text, **GREEDY).shape[1] > text.shape[1]
    with pytest.raises(ValueError, match="pixel_values"):
        model.generate(ids, images=pictures[:1], pixel_values=pictures[:1])


@pytest.mark.parametrize(
    "options",
    [
        dict(num_beams=3),
        dict(do_sample=True, temperature=0.7, top_p=0.9),
        dict(num_beams=2, num_return_sequences=2),
        dict(use_cache=False),
        dict(prompt_lookup_num_tokens=2),
    ],
    ids=lambda options: next(iter(options)),
)
def test_ways_of_decoding_equal_stock(model, stock, pictures, options):
    ids = torch.tensor([ROWS[0]])
    expanded = [1, 50] + [forms.STOCK_IMAGE_TOKEN] * forms.PATCHES + [60, 61, 62]
    prompt = torch.tensor([expanded])
    torch.manual_seed(0)
    expected = stock.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values=pictures[:1],
        **(GREEDY | options),
    )[:, prompt.shape[1] :]  # fmt: skip
    torch.manual_seed(0)
    got = model.generate(ids, images=pictures[:1], **(GREEDY | options))
    assert torch.equal(got, expected)


def test_repetition_penalty_counts_new_tokens_only(model, pictures):
    """As in LLaVA, whose generation never sees the prompt's ids; worked out by hand here."""
    ids = torch.tensor([ROWS[0]])
    penalty, new = 1.7, []
    for _ in range(6):
        row = torch.tensor([ROWS[0] + new])
        out = model.generate(row, images=pictures[:1], **(FULL | dict(max_new_tokens=1)))
        logits = out.logits[0][0]
        for token in set(new):
            logits[token] = (
                logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            )
        new.append(int(logits.argmax()))
    plain = model.generate(ids, images=pictures[:1], **GREEDY)[0].tolist()
    for kwargs in (
        dict(GREEDY, repetition_penalty=penalty),
        dict(generation_config=transformers.GenerationConfig(**GREEDY, repetition_penalty=penalty)),
    ):
        got = model.generate(ids, images=pictures[:1], **kwargs)[0].tolist()
        assert got == new
    assert plain != new  # the penalty does something


def test_no_repeat_ngram_counts_new_tokens_only(model, pictures):
    ids = torch.tensor([ROWS[0]])
    options = dict(GREEDY, max_new_tokens=12, no_repeat_ngram_size=1)
    new = model.generate(ids, images=pictures[:1], **options)[0].tolist()
    assert len(set(new)) == len(new)


def test_criteria_processors_and_streamers_see_new_tokens_only(model, pictures):
    seen, streamed = [], []

    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.clone())
            return torch.full((len(input_ids),), input_ids.shape[1] >= 3)

    class Streamer:
        def put(self, value):
            streamed.append(value.flatten().tolist())

        def end(self):
            streamed.append("end")

    processed = []

    def processor(input_ids, scores):
        processed.append(input_ids.shape[1])
        return scores

    out = model.generate(
        torch.tensor([ROWS[0]]),
        images=pictures[:1],
        stopping_criteria=StoppingCriteriaList([Stop()]),
        logits_processor=[processor],
        streamer=Streamer(),
        **GREEDY,
    )
    assert out.shape == (1, 3)
    assert torch.equal(seen[-1], out) and processed == [0, 1, 2]
    assert streamed == [[], *[[token] for token in out[0].tolist()], "end"]


def test_forward_takes_images_and_labels(model, stock, pictures):
    rows = torch.tensor([ROWS[0]])
    labels = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 60, 61, 62]])
    out = model(rows, images=pictures[:1], labels=labels, attention_mask=torch.ones_like(rows))
    expanded = torch.tensor([[1, 50] + [forms.STOCK_IMAGE_TOKEN] * forms.PATCHES + [60, 61, 62]])
    targets = torch.tensor([[IGNORE_INDEX] * (2 + forms.PATCHES) + [60, 61, 62]])
    expected = stock(input_ids=expanded, pixel_values=pictures[:1], labels=targets)
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.loss, expected.loss, atol=1e-5, rtol=0)
    assert model(input_ids=torch.tensor([ROWS[2]]), images=None).logits.shape[1] == 3


def test_a_deep_copy_keeps_the_placeholder_guard(model, pictures):
    twin = copy.deepcopy(model)
    ids = torch.tensor([ROWS[0]])
    expected = model.generate(ids, images=pictures[:1], **GREEDY)
    assert torch.equal(twin.generate(ids, images=pictures[:1], **GREEDY), expected)
