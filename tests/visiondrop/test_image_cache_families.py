"""Kept prompt beginnings of further families: tiles, videos, pictures among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.visiondrop import internvl_models as internvl
from tests.visiondrop import onevision_models as onevision
from tests.visiondrop import video_models as video
from tests.visiondrop.models import logits
from tests.visiondrop.test_image_cache import CLOSE
from visiondrop import ImageCache, VisionDrop

SIZES = [(24, 48), (40, 30)]
DROP = {"encoder": (12, 3), "llm": {2: (7, 2), 5: (4, 1)}}
FAMILIES: dict[str, Any] = {
    "onevision": (
        onevision.tiny_onevision,
        [onevision.prompt(3 + i, 4 + i, i, [size]) for i, size in enumerate(SIZES)],
        [onevision.inputs([[size]], [[i]]) for i, size in enumerate(SIZES)],
        onevision.generate,
    ),
    "onevision-video": (
        onevision.tiny_onevision,
        [onevision.prompt(3 + i, 4 + i, i, ["v"]) for i in range(2)],
        [onevision.inputs([["v"]], [[i]]) for i in range(2)],
        onevision.generate,
    ),
    "internvl": (
        internvl.tiny_internvl,
        [internvl.prompt(3 + i, 4 + i, i, [1 + 2 * i]) for i in range(2)],
        [internvl.inputs([1 + 2 * i], [i]) for i in range(2)],
        internvl.generate,
    ),
    "video-llava": (
        video.tiny_video,
        [video.prompt(3 + i, 4 + i, i, "vp") for i in range(2)],
        [video.inputs("vp", [i, i + 5]) for i in range(2)],
        video.generate,
    ),
}


@pytest.mark.parametrize("positions", ["renumbered", "original"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_beginnings_equal_fresh_prompts(family: str, positions: Any, tmp_path: Path) -> None:
    make, rows, pixels, generate = FAMILIES[family]
    model = make()
    method = VisionDrop(**DROP, query="patches", positions=positions)
    cache = ImageCache(model, method)
    parts = [cache.split(row) for row in rows]
    prompts = [{"input_ids": head, **own} for (head, _), own in zip(parts, pixels, strict=True)]
    prefixes, rests = cache.build_all(prompts), [rest for _, rest in parts]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    out = cache.generate(
        prefixes, rests, suppress_tokens=sorted({i for r in rows for i in r if i >= 90}),
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip
    for r, (row, own, prefix) in enumerate(zip(rows, pixels, prefixes, strict=True)):
        with method(model) as trace:
            alone = generate(model, [row], own)
        torch.testing.assert_close(logits(out)[0, r], logits(alone)[0, 0], **CLOSE)
        torch.testing.assert_close(
            cache.logits(prefix, [rests[r]])[0], logits(alone)[0, 0], **CLOSE
        )
        assert prefix.sample is not None
        assert prefix.sample.tokens_per_layer == trace.samples[0].tokens_per_layer
    assert cache.build_all(prompts) == prefixes, "found again"
    cache.save(tmp_path / "kept.safetensors")
    other = ImageCache(model, method)
    other.load(tmp_path / "kept.safetensors")
    for a, b in zip(other.build_all(prompts), prefixes, strict=True):
        assert a.sample is not None and b.sample is not None
        assert a.sample.to_dict() == b.sample.to_dict() and a.sample.grids == b.sample.grids
