"""DivPrune's released code, every setting and picture: picks, kept tokens, logits, text."""

from __future__ import annotations

import pytest

from tests.visiondrop import golden_runs
from visiondrop.functional.diversity import cosine_matrix, max_min_order
from visiondrop.methods.divprune import DivPrune
from visiondrop.views import ProjectedView


class Watched(DivPrune):
    """Notes the order of the picks on the model's own features."""

    def projected_stage(self, view: ProjectedView):  # type: ignore[no-untyped-def]
        self.order = max_min_order(1 - cosine_matrix(view.features), self.tokens).tolist()
        return super().projected_stage(view)


@pytest.mark.parametrize("name", golden_runs.settings("DivPrune"))
def test_released_code(name: str) -> None:
    hyper = golden_runs.setting("DivPrune", name)["hyperparameters"]
    method = Watched(tokens=int(round(hyper["SUBSET_RATIO"] * 576)))
    run = golden_runs.run("DivPrune", name, method)
    for row, picture in enumerate(run.pictures):
        assert method.order[row] == picture["selection_order"]
        assert run.kept(row) == picture["kept_patch_indices"]
        assert len(run.kept(row)) == picture["n_visual_tokens_to_llm"] == method.tokens
    run.check()
