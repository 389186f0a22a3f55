"""Golden figures end to end: every picture of a setting as one batched generate on the loaded
original checkpoint.

    @pytest.mark.parametrize("name", golden_runs.settings("FasterVLM"))
    def test_fastervlm(name):
        run = golden_runs.run("FasterVLM", name, method)
        for row, picture in enumerate(run.pictures):
            assert run.kept(row) == picture["kept_patch_indices"]
        run.check()
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llava.model.builder import load_pretrained_model
from tests.conftest import GOLDEN, load_golden
from visiondrop.adapters import Geometry, adapter_of, geometry_of
from visiondrop.adapters.base import following_projections
from visiondrop.reducer import Reducer
from visiondrop.trace import SampleTrace, StageTrace, Trace
from visiondrop.views import EncoderView

LOGITS = 1e-4
STEPS = 8

data = functools.cache(load_golden)


@functools.cache
def images() -> dict[str, Tensor]:
    """`image_0` ...: normalised pixel values [3, 336, 336]."""
    return load_file(GOLDEN / "images.safetensors")


def pixels(numbers: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Pictures by number, [B, 3, 336, 336]."""
    return torch.stack([images()[f"image_{n}"] for n in numbers]).to(dtype)


@functools.cache
def model(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """The tiny checkpoint in LLaVA's original layout, loaded as users load it."""
    return load_pretrained_model(
        str(GOLDEN / "tiny-llava-v1.5"),
        None,
        "tiny-llava-v1.5",
        device="cpu",
        torch_dtype=dtype,
        attn_implementation=attention,
    )[1]


def geometry() -> Geometry:
    """The tiny checkpoint's sizes."""
    return geometry_of(model())


def encoder_view(numbers: Sequence[int], dtype: torch.dtype = torch.float32) -> EncoderView:
    """What the vision tower gives for pictures by number, as a method sees it."""
    llava = model(dtype)
    adapter = adapter_of(llava)
    with torch.no_grad():
        out = adapter.encode(llava, pixels(numbers, dtype))
        tower, num_layers = adapter.tower(llava)
        following = following_projections(tower, num_layers, out.features)
    return EncoderView(
        out.features,
        out.query,
        out.key,
        out.scale,
        has_cls=True,
        grid=adapter.geometry(llava.config).grid,
        make_keys=lambda: [str(n) for n in numbers],
        make_following=lambda: following,
    )


def settings(stem: str, skip: Collection[str] = ()) -> list[Any]:
    """Parameters of a test that runs over every setting of a file: the settings' names."""
    names = [s["name"] for s in data(stem)["settings"] if s["name"] not in skip]
    return [pytest.param(name, id=f"golden-{stem}-{name.replace(' ', '_')}") for name in names]


def setting(stem: str, name: str) -> dict[str, Any]:
    """One setting: `hyperparameters` and `pictures`."""
    return next(s for s in data(stem)["settings"] if s["name"] == name)


@dataclass
class GoldenRun:
    """What one batched generate did, beside what was expected of each row.

    Attributes:
        pictures: the file's entries, one per row.
        out, trace: as from `generate` and `with method(model)`.
        rope: for prefill and the first two decode steps the (cos, sin) that each layer was handed.
    """

    pictures: list[dict[str, Any]]
    out: Any
    trace: Trace
    rope: list[list[tuple[Tensor, Tensor]]]
    model: Any

    def sample(self, row: int) -> SampleTrace:
        return self.trace.samples[row]

    def stage(self, row: int, index: int = 0) -> StageTrace:
        return self.sample(row).stages[index]

    def kept(self, row: int, index: int = 0) -> list[int]:
        """Patch ids kept by a stage, in the order in which the LLM gets them, CLS (-1) left out."""
        return [patch for patch in self.stage(row, index).kept if patch >= 0]

    def check(self, atol: float = LOGITS, skip: Collection[str] = ()) -> None:
        """First-step logits, the 8 ids, lengths per layer, cache lengths, positions, for every row.

        `skip` names of "ids", "kv", "positions", "decode positions" what is left out. A doubled
        cache layer of the released FastV (its layer K - 1 appends everything twice) counts once.
        """
        dtype = self.out.logits[0].dtype
        for row, picture in enumerate(self.pictures):
            expected = torch.tensor(picture["first_step_logits"], dtype=dtype)
            torch.testing.assert_close(self.out.logits[0][row], expected, atol=atol, rtol=0)
            prefill = by_layer(picture["prefill_sequence_length_by_layer"])
            assert self.sample(row).lengths == prefill
            if "ids" not in skip:
                assert self.out.sequences[row].tolist() == picture["generated_ids"][-STEPS:]
            if "positions" not in skip:
                self.check_rope(row, 0, picture["prefill_position_ids_by_layer"])
            if not {"positions", "decode positions"} & set(skip):
                for step, spans in enumerate(picture["decode_position_ids_by_layer"], 1):
                    self.check_rope(row, step, spans)
        if "kv" not in skip:
            held = [layer.get_seq_length() for layer in self.out.past_key_values.layers]
            plans = [expected_cache(picture) for picture in self.pictures]
            assert held == [max(lengths) for lengths in zip(*plans, strict=True)]

    def check_rope(self, row: int, step: int, spans: list[list[Any]]) -> None:
        """Each layer's rotary embedding is that of the expected positions (rows end together)."""
        rotary = self.model.model.language_model.rotary_emb
        for first, last, value in spans:
            positions = torch.tensor([expand(value)])
            wanted = rotary(self.rope[step][first][0], position_ids=positions)
            for layer in range(first, last + 1):
                for got, want in zip(self.rope[step][layer], wanted, strict=True):
                    got = got.expand(len(self.pictures), -1, -1)[row, -positions.shape[1] :]
                    torch.testing.assert_close(got, want[0], atol=1e-6, rtol=0)


def expand(value: Any) -> list[int]:
    """A position list, or its short form "0..n-1"."""
    if isinstance(value, str):
        first, last = map(int, value.split(".."))
        return list(range(first, last + 1))
    return list(value)


def by_layer(spans: list[list[Any]]) -> list[Any]:
    """[first layer, last layer, value] spans to one value per layer."""
    return [value for first, last, value in spans for _ in range(first, last + 1)]


def expected_cache(picture: dict[str, Any]) -> list[int]:
    """Cache lengths after the 7 decode steps; a layer twice as long as its prefill counts once."""
    held = by_layer(picture["kv_cache_length_by_layer_at_end"])
    once = [n + STEPS - 1 for n in by_layer(picture["prefill_sequence_length_by_layer"])]
    return [n // 2 if n == 2 * m else n for n, m in zip(held, once, strict=True)]


def run(
    stem: str,
    name: str,
    method: Reducer,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    questions: list[str] | None = None,
    pictures: list[dict[str, Any]] | None = None,
) -> GoldenRun:
    """All pictures of a setting (or the given ones of them) in one batch; the prompt is one and the
    same, so nothing is padded before the first drop.

    Args:
        questions: raw questions, one per picture, for methods that read them.
    """
    llava = model(dtype, attention)
    if pictures is None:
        pictures = setting(stem, name)["pictures"]
    rope: list[list[tuple[Tensor, Tensor]]] = []

    def note(layer: int, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if layer == 0:
            rope.append([])
        if len(rope) <= 3:
            rope[-1].append(kwargs["position_embeddings"])

    handles = [
        layer.self_attn.register_forward_pre_hook(functools.partial(note, i), with_kwargs=True)
        for i, layer in enumerate(llava.model.language_model.layers)
    ]
    ids = torch.tensor([data(stem)["input"]["input_ids"]]).expand(len(pictures), -1)
    try:
        with method(llava) as trace:
            if questions is not None:
                trace.set_questions(questions)
            out = llava.generate(
                ids,
                images=pixels([p["picture"] for p in pictures], dtype),
                do_sample=False,
                max_new_tokens=STEPS,
                return_dict_in_generate=True,
                output_logits=True,
            )
    finally:
        for handle in handles:
            handle.remove()
    return GoldenRun(pictures, out, trace, rope, llava)
