"""The parts of a positional-bias measurement: scores, methods, and the controls that tell what goes
with the place from what goes with the picture. `analysis.positional_bias` runs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from analysis import position_stats as stats
from analysis.places import centres, is_patch, patches_under
from analysis.position_readings import (
    BINS,
    Scored,
    Shuffled,
    first_identity,
    place_measures,
    probe_of,
    read,
    score_measures,
    share_below,
    show_objects,
    upside_down,
)
from analysis.position_table import Key, Tally
from analysis.probe import Probe
from analysis.scores import ENCODER_SCORES
from analysis.setting import Case, Setting, Unknown
from llava.eval.errors import EvalError
from llava.eval.planning import check_name, make_method
from visiondrop import Reducer, TowerCache
from visiondrop.methods import METHODS, parse_fields

__all__ = ["PositionalBias", "refuse"]

TOWER_BYTES = 2**29


@dataclass
class PositionalBias:
    """One measurement; its parts are called in turn and fill `tally`."""

    setting: Setting
    layers: tuple[int, ...]
    tokens: int
    controls: int
    shuffles: int
    tally: Tally = field(default_factory=Tally)
    truths: dict[str, Any] = field(default_factory=dict)
    upright: dict[str, list[Scored]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.setting.towers is None:
            self.setting = dataclasses.replace(self.setting, towers=TowerCache(TOWER_BYTES))
        self.cases = self.setting.first_of_pictures
        self.held = self.cases[: self.controls]
        self.grid = self.setting.geometry.grid
        self.count = self.grid[0] * self.grid[1]

    def check(self) -> None:
        """Refuse numbers that make no sense."""
        most = self.setting.geometry.num_patches
        if not 1 <= self.tokens < most:
            raise EvalError(f"--tokens {self.tokens}: a picture has {most}; give 1 to {most - 1}")
        if self.controls < 0 or self.shuffles < 2:
            raise EvalError(
                f"--controls {self.controls} must be at least 0 and --shuffles {self.shuffles} at "
                "least 2, as orders are compared with one another"
            )

    @cached_property
    def missing(self) -> dict[str, str]:
        """Scores that this model has not, and why."""
        if "cls" in self.setting.geometry.lacks:
            return {"cls": "this vision tower has no CLS token whose attention could be read"}
        return {}

    @property
    def probe(self) -> Probe:
        """Reads all scores that there are."""
        encoder = [name for name in ENCODER_SCORES if name not in self.missing]
        return probe_of(self.layers, encoder)

    @cached_property
    def middle(self) -> np.ndarray:
        """[squares, 2], the middle of each square of the grid."""
        rows, columns = np.divmod(np.arange(self.count), self.grid[1])
        return np.stack([(rows + 0.5) / self.grid[0], (columns + 0.5) / self.grid[1]], 1)

    # ------------------------------------------------------------------ (a) scores

    def find_truth(self) -> None:
        """Where objects are: profiles and centre of mass of the squares that show one."""
        reason: Unknown | None = None
        for case in self.cases:
            try:
                things = self.setting.objects(case)
            except Unknown as error:
                reason = error
                continue
            self.truths[case.picture] = things
            on = show_objects(self.setting, self.middle, things).astype(float)
            key = Key("scores", "truth")
            self.tally.add(key, case.picture, place_measures(self.middle, on > 0, "kept_"))
            self._lines(key, on, "kept_")
            self.tally.profile(key, "kept_map", _relative(on))
        if reason is not None and not self.truths:
            raise reason

    def scores(self) -> None:
        """Each score against its place, the truth, and uniform attention."""
        found = read(self.setting, self.probe, self.cases, "scores")
        for case, all_scores in zip(self.cases, found, strict=True):
            if len(self.upright) < len(self.held):
                self.upright[case.picture] = all_scores
            for score in all_scores:
                self._score(case, score)

    def _score(self, case: Case, score: Scored) -> None:
        key = Key("scores", score.name, score.layer)
        kept = np.zeros(len(score.values), dtype=bool)
        kept[stats.top(score.values, self.tokens)] = True
        measures = score_measures(score) | place_measures(score.places, kept, "kept_")
        measures |= self._hits(case, score.places, kept)
        self.tally.add(key, case.picture, measures)
        self.tally.profile(key, "by_position", stats.binned(score.values, BINS))
        self._lines(key, stats.by_square(score.values, score.squares, self.count))
        rate = stats.by_square(kept, score.squares, self.count)
        self._lines(key, rate, "kept_")
        self.tally.profile(key, "kept_map", _relative(rate))
        if score.even is not None and score.name == "visual":
            key = Key("scores", "uniform", score.layer)
            self.tally.profile(key, "by_position", stats.binned(score.even, BINS))
            ratio = stats.first_to_last(score.even)
            self.tally.add(key, case.picture, {"first_last_ratio": (ratio, 1.0)})

    def _lines(self, key: Key, squares: np.ndarray, prefix: str = "") -> None:
        for axis in ("row", "column"):
            line = stats.by_line(squares, self.grid, axis)
            self.tally.profile(key, f"{prefix}by_{axis}", line)

    def _hits(
        self, case: Case, places: np.ndarray, kept: np.ndarray
    ) -> dict[str, tuple[float, float]]:
        """recall: share of object tokens kept; precision: share of kept tokens on an object; both
        beside what a random choice of as many tokens would give. lower_half_gap: share of the kept
        tokens in the picture's lower half, less that of the object tokens.
        """
        if case.picture not in self.truths:
            return {}
        true = show_objects(self.setting, places, self.truths[case.picture])
        recall, precision = stats.hits(kept, true)
        gap = share_below(places[kept]) - share_below(places[true])
        return {
            "recall": (recall, kept.mean()),
            "precision": (precision, true.mean()),
            "lower_half_gap": (gap, 0.0),
        }

    # ------------------------------------------------------------------ (b) methods

    def method(self, spec: str) -> Callable[[], None]:
        """The part that measures one method; `EvalError` for a name that is none."""
        name, _, argument = spec.partition(":")
        field_, equals, value = argument.partition("=")
        if argument and not equals:
            raise EvalError(f"method {spec!r}: write name:field=value")
        options = {field_: value} if equals else {}
        check_name(name)
        try:
            # What is wrong with the words stops everything; what this model cannot do does not.
            parse_fields(METHODS[name.partition("@")[0]], options)
        except (KeyError, ValueError) as error:
            raise EvalError(f"method {spec!r}: {error}") from None
        try:
            method = make_method(name, self.tokens, self.setting.geometry, options)
        except EvalError as error:
            return refuse(str(error))
        return lambda: self._method(spec, method)

    def _method(self, label: str, method: Reducer) -> None:
        """What is left after the last stage: `tokens` kept as they were, `merged` ones that stand
        for others; the former's places against the picture's.
        """
        key = Key("methods", label)
        for look in self.setting.walk(method, self.cases, label=label):
            try:
                kept_ids, merged = stats.kept_at_the_end(look.trace)
            except ValueError as error:
                raise Unknown(f"{label}: {error}") from None
            identity = first_identity(look.trace)
            places = centres(identity, look.trace, self.grid)
            shown = is_patch(places)
            places, identity = places[shown], identity[shown]
            kept = np.isin(identity, kept_ids)
            nan = float("nan")
            measures = {"tokens": (float(kept.sum()), nan), "merged": (float(len(merged)), nan)}
            measures |= place_measures(places, kept, "kept_") | self._hits(look.case, places, kept)
            self.tally.add(key, look.case.picture, measures)
            rate = stats.by_square(kept, patches_under(places, self.grid), self.count)
            self._lines(key, rate, "kept_")

    # ------------------------------------------------------------------ (c) controls

    def flip(self) -> None:
        """The picture upside down: does the kept set turn with it?

        content_overlap: intersection over union of what is kept then and the mirror image of what
        is kept upright, 1 where the score follows the picture; place_overlap: with what is kept
        upright, 1 where it follows the place. content_rank, place_rank: the same of whole scores,
        as rank correlations over the squares of the grid.
        """
        turned = read(upside_down(self.setting), self.probe, self.held, "upside down")
        back = stats.mirrored(np.arange(self.count), self.grid)
        for case, scores in zip(self.held, turned, strict=True):
            for up, down in zip(self.upright[case.picture], scores, strict=True):
                first, second = (s.squares[stats.top(s.values, self.tokens)] for s in (up, down))
                chance = self._chance(up.squares.tobytes(), str(up.squares.dtype), self.tokens)
                ranked = [
                    stats.ranks(stats.by_square(s.values, s.squares, self.count))
                    for s in (up, down)
                ]
                mirror = stats.mirrored(first, self.grid)
                measures = {
                    "content_overlap": (stats.overlap(mirror, second), chance),
                    "place_overlap": (stats.overlap(first, second), chance),
                    "content_rank": (stats.correlation(ranked[0][back], ranked[1]), 0.0),
                    "place_rank": (stats.correlation(*ranked), 0.0),
                }
                self.tally.add(Key("flip", up.name, up.layer), case.picture, measures)

    @staticmethod
    @lru_cache(maxsize=64)
    def _chance(squares: bytes, kind: str, k: int) -> float:
        return stats.chance_overlap(np.frombuffer(squares, dtype=kind), k)

    def grey(self) -> None:
        """A plain grey picture in place of each: what is left is the place's.

        real_rank: rank correlation, over tokens, of the score with the real picture's. Others as
        for scores. Text-free scores see the same grey picture each time.
        """
        plain = read(self.setting, self.probe, self.held, "plain grey", blank=True)
        for case, scores in zip(self.held, plain, strict=True):
            for real, score in zip(self.upright[case.picture], scores, strict=True):
                kept = np.zeros(len(score.values), dtype=bool)
                kept[stats.top(score.values, self.tokens)] = True
                alike = stats.correlation(stats.ranks(real.values), stats.ranks(score.values))
                measures = score_measures(score) | place_measures(score.places, kept, "kept_")
                measures["real_rank"] = alike, 0.0
                key = Key("grey", score.name, score.layer)
                self.tally.add(key, case.picture, measures)
                self.tally.profile(key, "by_position", stats.binned(score.values, BINS))

    def shuffle(self) -> None:
        """The picture's tokens in random orders: place and content come apart.

        Shares of the variance of ranks, each as a mean rank correlation between readings that have
        only this in common. place_share: the same place in the sequence, other pictures;
        content_share: the same token, in another order of the same picture; patch_share, a part of
        it: the same patch of other pictures in other orders, which the vision tower's position
        embeddings can make alike.
        """
        geometry = self.setting.geometry
        if geometry.crops or geometry.native:
            raise Unknown(
                "pictures differ in their tokens here; orders are compared place by place"
            )
        if len(self.held) < 2:
            raise Unknown("one picture cannot be compared with others; set --controls higher")
        rows: dict[tuple[str, str], list[tuple[int, np.ndarray, np.ndarray]]] = {}
        for seed in range(self.shuffles):
            probe = probe_of(self.layers, (), Shuffled, seed=seed)
            found = read(self.setting, probe, self.held, f"order {seed + 1}")
            for i, scores in enumerate(found):
                for score in scores:
                    held = rows.setdefault((score.name, score.layer), [])
                    ranked = stats.ranks(score.values)
                    held.append((i, ranked, ranked[score.identity.argsort()]))
        for (name, layer), held in rows.items():
            picture = np.array([i for i, _, _ in held])
            by_place, by_patch = (np.stack([row[k] for row in held]) for k in (1, 2))
            place = stats.mean_with_others(by_place, picture)
            patch = stats.mean_with_others(by_patch, picture)
            own = [picture == i for i in range(len(self.held))]
            shares: dict[str, Any] = {
                "place_share": stats.of_pairs([place[rows_of].mean() for rows_of in own]),
                "content_share": [
                    stats.mean_with_others(by_patch[of], np.arange(of.sum())).mean() for of in own
                ],
                "patch_share": stats.of_pairs([patch[rows_of].mean() for rows_of in own]),
            }
            for i, case in enumerate(self.held):
                measures = {share: (float(values[i]), 0.0) for share, values in shares.items()}
                self.tally.add(Key("shuffle", name, layer), case.picture, measures)


def _relative(rate: np.ndarray) -> np.ndarray:
    """Over its mean; NaN squares do not count."""
    return rate / np.nanmean(rate) if np.nansum(rate) else rate


def refuse(why: str) -> Callable[[], None]:
    def refuse() -> None:
        raise Unknown(why)

    return refuse
