"""CDPruner's released code: text tokens and embeddings, relevance, picks, kept tokens, logits,
text. Setting 64 is left out, as its file says: see `REASON`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import GOLDEN
from tests.visiondrop import golden_runs
from visiondrop.functional.diversity import cosine_matrix, dpp_order
from visiondrop.methods.cdpruner import CDPruner
from visiondrop.text_encoder import text_encoder
from visiondrop.views import ProjectedView

CLIP = str(GOLDEN / "tiny-clip-full-336")
ALL = golden_runs.data("CDPruner")["settings"]
LEFT_OUT = {s["name"]: s["not_for_parity"] for s in ALL if "not_for_parity" in s}
REASON = "feature dimension 64 limits the kernel rank; last picks are rounding noise"


def test_golden_CDPruner_what_is_left_out() -> None:
    """One setting only, for the reason that the file gives."""
    assert LEFT_OUT == {"64_short": REASON}
    assert len(ALL) == 6


class Watched(CDPruner):
    """Notes relevance and picks on the model's own features."""

    def projected_stage(self, view: ProjectedView) -> Any:
        clip = text_encoder(self.clip, view.features.device)
        r = self.r = self.relevance(clip, view.tower.patches, view.questions)
        kernel = r[:, :, None] * cosine_matrix(view.features) * r[:, None]
        self.order = dpp_order(kernel, self.tokens).tolist()
        return super().projected_stage(view)


@pytest.mark.parametrize("name", golden_runs.settings("CDPruner", skip=LEFT_OUT))
def test_released_code(name: str) -> None:
    setting = golden_runs.setting("CDPruner", name)
    pictures = setting["pictures"]
    method = Watched(tokens=setting["hyperparameters"]["visual_token_num"], clip=CLIP)
    questions = [setting["texts"]] * len(pictures)
    run = golden_runs.run("CDPruner", name, method, questions=questions)
    for row, picture in enumerate(run.pictures):
        expected = torch.tensor(picture["relevance"])
        torch.testing.assert_close(method.r[row], expected, atol=2e-5, rtol=0)
        assert method.order[row] == picture["selection_order"]
        assert run.kept(row) == picture["kept_patch_indices"]
    run.check()


@pytest.mark.parametrize("name", golden_runs.settings("CDPruner"))
def test_text_side(name: str) -> None:
    """Tokens, segments and embeddings of the question."""
    setting = golden_runs.setting("CDPruner", name)
    clip = text_encoder(CLIP, torch.device("cpu"))
    for picture in setting["pictures"]:
        segments = clip.segments(setting["texts"])
        assert [t for s in segments for t in s] == picture["text_token_ids"]
        assert len(segments) == picture["n_text_segments"]
        (got,) = clip.questions([setting["texts"]])
        expected = torch.tensor(picture["text_embeds"])
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
