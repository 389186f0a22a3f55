"""PruMerge+: PruMerge with patches sampled evenly over the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visiondrop.methods.prumerge import PruMerge


@dataclass
class PruMergePlus(PruMerge):
    """LLaVA-PruMerge+ (Shang et al., ICCV 2025, arXiv 2403.15388).

    PruMerge whose kept patches are, in this order, the int(n * ratio) best by score and evenly
    spaced ones. With s = int(1 / ratio): 0, t, 2t, ... < n - 1 for t = int(s / 3), those that are
    not kept already (`adaptive`, as evaluated); or s//2, s//2 + s, ... < n - 1, those kept already
    too, so that a patch may come twice (not `adaptive`, as trained). In the latter case each
    repetition leaves one more of the first patches out of the last token (as released;
    `duplicates=False` does without both). Where there is no outlier s is n.

    The released code has no budget: `tokens` and `from_average` keep a quarter of tokens - 1 by
    score, the adaptive rule's own share, fill up to tokens - 1 with evenly spaced ones of the other
    patches, and add the last token.

    Args:
        ratio: share that takes the place of the share of outliers; without `adaptive` the
            `reduction_ratio`, 1/8 where it is not given. The adaptive rule needs 1/3 at most.
        adaptive: which of the two ways of sampling (`if_adaptive`).
        duplicates: without `adaptive`, whether sampled patches may be kept already (released).
        tokens, neighbours, candidates: as for PruMerge.
    """

    name = "prumerge+"
    title = "PruMerge+"
    signal = "CLS outliers and even samples, key merge"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "adaptive": {},
        "trained-0.125": {"adaptive": False, "ratio": 0.125},
    }

    adaptive: bool = True
    duplicates: bool = True

    def __post_init__(self) -> None:
        if not self.adaptive and self.ratio is None and self.tokens is None:
            self.ratio = 0.125

    @property
    def most_ratio(self) -> float:  # type: ignore[override]
        """Above a third the adaptive rule's step would be 0."""
        return 1 / 3 if self.adaptive else 1

    def samples(self, ratio: float, n: int) -> range:
        """The evenly spaced patches that go with a share."""
        step = int(1 / ratio) if ratio else n
        return range(0, n - 1, step // 3) if self.adaptive else range(step // 2, n - 1, step)

    def most_kept(self, n: int) -> int:
        """All samples, none of them kept already; with a sixth of outliers that is every patch."""
        if self.ratio is None:
            return n
        most = int(n * self.ratio) + len(self.samples(self.ratio, n))
        return most if not self.adaptive and self.duplicates else min(n, most)

    def choose(self, ranked: Tensor, ratio: float) -> Tensor:
        """The best of `ranked` [n] and the samples."""
        best = super().choose(ranked, ratio)
        sampled = torch.tensor(
            list(self.samples(ratio, len(ranked))), dtype=ranked.dtype, device=ranked.device
        )
        if self.adaptive or not self.duplicates:
            sampled = sampled[~torch.isin(sampled, best)]
        return torch.cat([best, sampled])

    def choose_exactly(self, ranked: Tensor, count: int) -> Tensor:
        """A quarter of `count` by score, the rest evenly spaced over the other patches."""
        best = round(count / 4)
        others, spaced = ranked[:, best:].sort(dim=1).values, count - best
        places = torch.arange(spaced, device=ranked.device) * 2 + 1
        places = places * others.shape[1] // max(1, 2 * spaced)
        return torch.cat([ranked[:, :best], others[:, places]], 1)
