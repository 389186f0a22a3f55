"""VisionDrop's released code, case by case: kept tokens, merges, KV lengths, logits, text."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from llava.model.builder import load_pretrained_model
from tests.conftest import GOLDEN, load_golden
from visiondrop import VisionDrop

DATA = load_golden("VisionDrop")
CASES = {case["name"]: case for case in DATA["cases"]}
LOGITS = 1e-4


@functools.cache
def images() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "images.safetensors")


@functools.cache
def original(attention: str) -> Any:
    return load_pretrained_model(
        str(GOLDEN / "tiny-llava-v1.5"),
        None,
        "tiny-llava-v1.5",
        device="cpu",
        torch_dtype=torch.float32,
        attn_implementation=attention,
    )[1]


@functools.cache
def stock(attention: str) -> Any:
    """The plain transformers class with the same weights, and a placeholder inside its
    vocabulary.
    """
    wrapped = original(attention)
    model = LlavaForConditionalGeneration(wrapped.config)
    model.load_state_dict(wrapped.state_dict())
    model.set_attn_implementation(attention)
    return model.eval()


def method_of(schedule: list[list[int]]) -> VisionDrop:
    encoder, *llm = (tuple(budget) for budget in schedule)
    return VisionDrop(encoder=encoder, llm=dict(zip((8, 16, 24), llm, strict=True)))


def run_original(attention: str, cases: list[dict], method: VisionDrop | None) -> Any:
    model = original(attention)
    ids = [torch.tensor(case["prompt_ids"]) for case in cases]
    width = max(map(len, ids))
    rows = torch.stack([torch.cat([i.new_zeros(width - len(i)), i]) for i in ids])
    mask = torch.stack([torch.arange(width) >= width - len(i) for i in ids]).long()
    pixels = torch.stack([images()[case["image"]] for case in cases])

    def generate() -> Any:
        return model.generate(
            rows,
            images=pixels,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=8,
            return_dict_in_generate=True,
            output_logits=True,
        )

    if method is None:
        return generate(), None
    with method(model) as trace:
        return generate(), trace


def run_stock(attention: str, cases: list[dict], method: VisionDrop | None) -> Any:
    """-200 as the stock class wants it: 576 placeholders. Its table has no row for them: id 0
    stands in.
    """
    model = stock(attention)
    token = model.config.image_token_id
    ids = []
    for case in cases:
        at = case["prompt_ids"].index(-200)
        row = [*case["prompt_ids"][:at], *[token] * 576, *case["prompt_ids"][at + 1 :]]
        ids.append(torch.tensor(row))
    width = max(map(len, ids))
    rows = torch.stack([torch.cat([i.new_zeros(width - len(i)), i]) for i in ids])
    mask = torch.stack([torch.arange(width) >= width - len(i) for i in ids]).long()
    table = model.get_input_embeddings()
    handle = table.register_forward_pre_hook(
        lambda _m, a: (a[0].clamp(max=table.num_embeddings - 1),)
    )
    kwargs = dict(
        input_ids=rows,
        pixel_values=torch.stack([images()[case["image"]] for case in cases]),
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=8,
        return_dict_in_generate=True,
        output_logits=True,
    )
    try:
        if method is None:
            out, trace = model.generate(**kwargs), None
        else:
            with method(model) as trace:
                out = model.generate(**kwargs)
    finally:
        handle.remove()
    out.sequences = out.sequences[:, width:]
    return out, trace


RUNS: dict[str, Callable] = {"original": run_original, "stock": run_stock}


def check_case(case: dict, out: Any, trace: Any, row: int, padded: int) -> None:
    sample = trace.samples[row]
    encoder, *llm = sample.stages
    kept, merged = encoder.kept, encoder.merged
    assert kept[0] == -1 and case["encoder"]["cls_kept"]
    assert kept[1:] == case["encoder"]["dominant_patches"]
    assert encoder.tokens_out == case["encoder"]["tokens_out"]
    assert assigned(merged) == case["encoder"]["assigned_reference"]
    assert len(llm) == len(case["llm_stages"])
    for stage, expected in zip(llm, case["llm_stages"], strict=True):
        assert stage.layer == expected["layer"] and stage.tokens_in == expected["visual_tokens_in"]
        assert stage.source[~stage.contextual].tolist() == expected["dominant"]
        first = len(expected["dominant"])
        references = stage.source[stage.contextual].tolist()
        members = [
            i for i in range(stage.tokens_in) if i not in {*expected["dominant"], *references}
        ]
        went = [int(stage.target[i]) - first for i in members]
        assert went == expected["assigned_reference"]
    lengths = [layer.get_seq_length() - padded for layer in out.past_key_values.layers]
    assert lengths == case["kv_lengths"]
    torch.testing.assert_close(
        out.logits[0][row], torch.tensor(case["first_step_logits"]), atol=LOGITS, rtol=0
    )
    second = out.logits[1][row].topk(5)
    assert second.indices.tolist() == [token for token, _ in case["second_step_top5"]]
    torch.testing.assert_close(
        second.values, torch.tensor([v for _, v in case["second_step_top5"]]), atol=LOGITS, rtol=0
    )
    assert out.sequences[row].tolist() == case["generated"][1:]


def assigned(merged: list[dict]) -> list[int]:
    """For each merged patch in raster order its reference as 0..contextual-1."""
    pairs = sorted((m, i) for i, entry in enumerate(merged) for m in entry["members"])
    return [i for _, i in pairs]


SINGLES = [
    pytest.param(name, form, attention, id=f"golden-VisionDrop-{form}-{attention}-{name}")
    for form in RUNS
    for attention in ("sdpa", "eager")
    for name in CASES
]


@pytest.mark.parametrize("name, form, attention", SINGLES)
def test_case(name: str, form: str, attention: str) -> None:
    case = CASES[name]
    out, trace = RUNS[form](attention, [case], method_of(case["schedule"]))
    check_case(case, out, trace, 0, 0)


def pairs() -> list[tuple[str, str]]:
    """Cases of unequal prompts or pictures that share a schedule."""
    names = sorted(CASES, key=lambda n: n.rsplit("/", 1)[1])
    return [
        (a, b)
        for a, b in zip(names, names[1:], strict=False)
        if CASES[a]["schedule"] == CASES[b]["schedule"]
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "a, b", [pytest.param(*p, id="golden-VisionDrop-batch-" + "+".join(p)) for p in pairs()]
)
def test_left_padded_batch(a: str, b: str, attention: str) -> None:
    both = [CASES[a], CASES[b]]
    out, trace = run_original(attention, both, method_of(both[0]["schedule"]))
    width = max(len(case["prompt_ids"]) for case in both)
    for row, case in enumerate(both):
        check_case(case, out, trace, row, width - len(case["prompt_ids"]))


@pytest.mark.parametrize("form", RUNS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, id=f"golden-VisionDrop-unpruned-{n}") for n in DATA["unpruned"]]
)
def test_unpruned(name: str, form: str, attention: str) -> None:
    expected = DATA["unpruned"][name]
    case = next(c for n, c in CASES.items() if n.startswith(name + "/"))
    out, _ = RUNS[form](attention, [case], None)
    torch.testing.assert_close(
        out.logits[0][0], torch.tensor(expected["first_step_logits"]), atol=LOGITS, rtol=0
    )
    assert out.sequences[0].tolist() == expected["generated"][1:]


def test_contract_word_for_word() -> None:
    """The documented call, as users write it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        str(GOLDEN / "tiny-llava-v1.5"), None, "tiny-llava-v1.5", device="cpu",
        torch_dtype=torch.float32, attn_implementation="sdpa",
    )  # fmt: skip
    method = VisionDrop(encoder=(42, 6), llm={8: (30, 5), 16: (22, 4), 24: (16, 3)})
    assert method == VisionDrop.from_average(32, num_layers=32)
    input_ids = torch.tensor([[1, 17, 93, -200, 13]])
    with method(model) as trace:
        out = model.generate(
            input_ids, images=images()["image_0"][None], do_sample=False, max_new_tokens=8,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    assert tokenizer is not None and image_processor is not None and context_len == 2048
    assert trace.samples[0].mean_tokens == 32
    assert len(out.logits) == out.sequences.shape[1] == 8
    assert out.past_key_values.layers[31].get_seq_length() == 4 + 19 + 7
