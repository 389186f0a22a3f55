"""Prompt strings, written out."""

import pytest

from llava.conversation import (
    Conversation,
    SeparatorStyle,
    conv_templates,
    default_conversation,
    get_template,
    infer_template,
)

USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
MPT = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)
Q = "<image>\nQ"
START, END = "<|im_start|>", "<|im_end|>"

ONE_QUESTION = {
    "vicuna_v1": f"{USER} USER: {Q} ASSISTANT:",
    "v1": f"{USER} USER: {Q} ASSISTANT:",
    "llava_v1": f"{HUMAN} USER: {Q} ASSISTANT:",
    "llava_v0": f"{HUMAN}###Human: {Q}###Assistant:",
    "plain": f"{Q}\n",
    "v0_plain": f"{Q}\n",
    "llava_llama_2": f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{Q} [/INST]",
    "mistral_instruct": f"[INST] {Q} [/INST]",
    "mpt": f"{START}system\n{MPT}{END}{START}user\n{Q}{END}{START}assistant\n",
    "chatml": f"{START}system\nAnswer the questions.{END}{START}user\n{Q}{END}{START}assistant\n",
    "chatml_direct": f"{START}system\nAnswer the questions.{END}{START}user\n{Q}{END}{START}assistant\n",  # fmt: skip  # noqa: E501
}
SECOND_TURN = {
    "vicuna_v1": f"{USER} USER: {Q} ASSISTANT: A</s>USER: R ASSISTANT:",
    "llava_v1": f"{HUMAN} USER: {Q} ASSISTANT: A</s>USER: R ASSISTANT:",
    "llava_v0": f"{HUMAN}###Human: {Q}###Assistant: A###Human: R###Assistant:",
    "llava_llama_2": f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{Q} [/INST] A </s><s>[INST] R [/INST]",
    "mistral_instruct": f"[INST] {Q} [/INST] A </s>[INST] R [/INST]",
    "mpt": f"{START}system\n{MPT}{END}{START}user\n{Q}{END}{START}assistant\nA{END}{START}user\nR{END}{START}assistant\n",  # fmt: skip  # noqa: E501
}


def ask(name, *texts):
    conversation = get_template(name)
    for i, text in enumerate([*texts, None]):
        conversation.append_message(conversation.roles[i % 2], text)
    return conversation.get_prompt()


def test_every_template_is_tested():
    assert set(ONE_QUESTION) == set(conv_templates)


@pytest.mark.parametrize("name", ONE_QUESTION)
def test_one_question(name):
    assert ask(name, Q) == ONE_QUESTION[name]


@pytest.mark.parametrize("name", SECOND_TURN)
def test_second_turn(name):
    assert ask(name, Q, "A", "R") == SECOND_TURN[name]


def test_a_copy_is_independent():
    before = {
        name: template.get_prompt() for name, template in conv_templates.items() if name != "x"
    }
    copy = default_conversation.copy()
    copy.append_message("USER", "a")
    other = copy.copy()
    other.messages[0][1] = "b"
    assert copy.messages == [["USER", "a"]]
    assert default_conversation.messages == []
    assert {name: t.get_prompt() for name, t in conv_templates.items()} == before


def test_pictures_of_the_first_message_come_first():
    conversation = get_template("vicuna_v1")
    conversation.append_message("USER", ("What is <image> this?", "picture", "Pad"))
    conversation.append_message("ASSISTANT", None)
    assert conversation.get_prompt() == f"{USER} USER: <image>\nWhat is  this? ASSISTANT:"


def test_llama_2_needs_a_first_text():
    conversation = get_template("llava_llama_2")
    conversation.append_message("ASSISTANT", "a")
    with pytest.raises(ValueError, match="first message"):
        conversation.get_prompt()


def test_single_style_with_another_separator():
    conversation = Conversation("S", ("U", "A"), [["U", "a"], ["A", ""]], 0, sep="|")
    assert conversation.sep_style is SeparatorStyle.SINGLE
    assert conversation.get_prompt() == "S|U: a|A:"


def test_unknown_template():
    with pytest.raises(ValueError, match="'vicuna_v9'.*vicuna_v1"):
        get_template("vicuna_v9")


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("llava-v1.5-7b", "llava_v1"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-llama-2-13b-chat", "llava_llama_2"),
        ("llava-1.5-7b-hf", "vicuna_v1"),
        ("pocket-llava", "vicuna_v1"),
    ],
)
def test_template_of_a_checkpoint(model, template):
    assert infer_template(model) == template
