"""The Llama tokenizer's ids against SentencePiece itself and the old slow tokenizer's rules."""

import random
import re

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from llava.model.tokenizer import load_stock_tokenizer, load_tokenizer
from tests.llava import forms

ALPHABET = [*"USERAassistant: '.,\n 42 \t?redé日 ▁", "</s>", "<s>", " ASSISTANT:", "\n"]


@pytest.fixture(scope="module")
def trained():
    return forms.sentencepiece_model()


def texts(seed, count=1500):
    rng = random.Random(seed)
    fixed = [
        "",
        " ",
        "  a",
        "USER: What",
        "\nWhat is 42? ASSISTANT:",
        " ASSISTANT: a",
        "</s>a</s> b",
    ]
    return fixed + [
        "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 20))) for _ in range(count)
    ]


def parts(text):
    return [part for part in re.split(r"(</s>|<s>)", text) if part]


def legacy_ids(processor, text):
    """Every stretch between special tokens on its own, a space before each."""
    ids = [1]
    for part in parts(text):
        ids += [{"<s>": 1, "</s>": 2}[part]] if part in ("<s>", "</s>") else processor.encode(part)
    return ids


def newer_ids(trained, text):
    """A space before the very start only: SentencePiece itself is told to put none."""
    model = sentencepiece_model_pb2.ModelProto.FromString(trained)
    model.normalizer_spec.add_dummy_prefix = False
    bare = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    if not text:
        return [1]
    ids = [1]
    for i, part in enumerate(parts(text)):
        if part in ("<s>", "</s>"):
            ids.append({"<s>": 1, "</s>": 2}[part])
        else:
            ids += bare.encode((" " if i == 0 else "") + part)
    return ids


@pytest.mark.parametrize("said", [True, None], ids=["legacy", "silent"])
def test_legacy_ids_are_sentencepiece_s(tmp_path, trained, said):
    settings = {} if said is None else {"legacy": said, "tokenizer_class": "LlamaTokenizer"}
    forms.write_tokenizer(tmp_path, trained, **settings)
    tokenizer = load_tokenizer(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained)
    for text in texts(0):
        assert tokenizer(text).input_ids == legacy_ids(processor, text), text


def test_newer_ids(tmp_path, trained):
    forms.write_tokenizer(tmp_path, trained, legacy=False, tokenizer_class="LlamaTokenizer")
    tokenizer = load_tokenizer(tmp_path)
    differ = 0
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained)
    for text in texts(1):
        ids = newer_ids(trained, text)
        assert tokenizer(text).input_ids == ids, text
        differ += ids != legacy_ids(processor, text)
    assert differ > 100  # the two behaviours are told apart


def test_decoding_gives_the_text_back(tmp_path, trained):
    forms.write_tokenizer(tmp_path, trained)
    tokenizer = load_tokenizer(tmp_path)
    for text in ("a red circle", "a  blue   square\n42", "é日 x"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_bos_can_be_switched_off_and_padding_side_is_kept(tmp_path, trained):
    forms.write_tokenizer(tmp_path, trained, add_bos_token=False, padding_side="left")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("a").input_ids[0] != 1
    assert tokenizer.padding_side == "left"


def yi_ids(processor, text, named):
    """The slow tokenizer of Yi: each stretch between named marks by SentencePiece itself."""
    pattern = "(" + "|".join(map(re.escape, named)) + ")"
    ids = []
    for part in filter(None, re.split(pattern, text)):
        ids += [processor.piece_to_id(part)] if part in named else processor.encode(part)
    return ids


@pytest.mark.parametrize("start_named", [False, True], ids=["unnamed", "named"])
def test_yi_marks_are_sentencepiece_s_where_no_setting_names_them(tmp_path, start_named):
    trained = forms.sentencepiece_model(**forms.YI_MARKS)
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained)
    assert [processor.piece_to_id(mark) for mark in ("<|im_start|>", "<|im_end|>")] == [6, 7]
    named = forms.YI_NAMED | ({6: "<|im_start|>"} if start_named else {})
    forms.write_tokenizer(tmp_path, trained, **forms.yi_tokenizer(named))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 7, 0)
    # A control symbol with a letter behind it, as it would stand in a text.
    marks = ["<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|Human|>a", "<|startoftext|>"]
    rng = random.Random(2)
    alphabet = [*ALPHABET, *marks]
    some = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 14))) for _ in range(1000)]
    for text in ["<|im_start|>user\nWhat<|im_end|>", "", *some]:
        ids = tokenizer(text).input_ids
        assert ids == yi_ids(processor, text, set(named.values())), text
    start = tokenizer("<|im_start|>user").input_ids
    assert start.index(6) == (0 if start_named else 1)  # behind a space of its own, or at the start
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_stock_tokenizer(tmp_path / "saved")
    assert [again(text).input_ids for text in some] == [tokenizer(text).input_ids for text in some]
    end = [*processor.encode("a red circle"), 7]
    assert tokenizer.decode(end, skip_special_tokens=True) == "a red circle"
