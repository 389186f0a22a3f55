"""Training batches of any-resolution pictures: one picture each, its questions packed behind it."""

from __future__ import annotations

import numpy as np
import torch

from playground.pocket.render import render
from playground.pocket.scene import make_scene
from playground.pocket.sets import vizwiz

from .pocket_data import TRAIN_SEED, Phase, PocketData
from .pocket_next_pictures import cut, draw_size

STREAM = 7100  # sets these pictures' seeds apart from the pocket model's own


class PocketNextData(PocketData):
    """Item i is part i % micro of step i // micro, one picture: see `PocketData`.

    A phase's ``grid`` is the number of patches along a tile's side.
    """

    def __init__(self, phase: Phase, index: int, seed: int, tokenizer: object) -> None:
        if phase.batch != phase.micro:
            raise ValueError(
                f"phase {phase.name}: batch {phase.batch}, micro {phase.micro}; pictures differ in "
                "length, so each is a part of its own: give the same number twice"
            )
        super().__init__(phase, index, seed, tokenizer)  # type: ignore[arg-type]
        self.windows = False  # a picture of small tiles is a small picture, not a part of one

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ph = self.phase
        key = (TRAIN_SEED + self.seed, STREAM + self.index, *divmod(i, ph.micro))
        rng = np.random.default_rng([*key, 7003])
        size = draw_size(ph.grid, rng)
        few = bool(rng.random() < ph.few)
        scene = make_scene(*key, size=size, kinds=ph.kinds, signs=ph.signs, few=few, world=size)
        picture = render(scene, 84 if rng.random() < 0.3 else None)
        spoilt = bool(rng.random() < ph.spoilt)
        tiles = cut(vizwiz.spoil(picture) if spoilt else picture, ph.grid, rng)
        n = len(tiles.order)
        packed = self._pack(self._lessons(scene, spoilt, rng), rng, tiles.squares, n)
        batch = {k: torch.from_numpy(x)[None] for k, x in packed.items()}
        # Half of the small pictures number their rows densely: as a prompt of another length.
        stretch = rng.random() < 0.5
        where, span = (tiles.where, tiles.span) if stretch else (np.arange(n), n)
        return batch | {
            "pixels": torch.from_numpy(tiles.pixels),
            "grid_ids": torch.from_numpy(tiles.grid_ids),
            "order": torch.from_numpy(tiles.order),
            "where": torch.from_numpy(where)[None],
            "span": torch.tensor(span),
            "prefix": torch.tensor(self.prefix),
        }
