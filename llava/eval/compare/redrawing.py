"""The kept tokens of both runs, side by side: a few samples are answered again to see them.

Each sample is asked alone, with the run's model, method and settings.  The text that comes out is
compared with the one on file: batches of another size, or another device, can make it differ, and
then the drawing shows what the new answer saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.eval.answering import LoadedModel, dataset_of, generate
from llava.eval.compare.changes import Change, Compared
from llava.eval.compare.matching import Questions
from llava.eval.compare.runs import Run, SeedRun
from llava.eval.errors import EvalError
from llava.eval.loading import ModelChoice, load_model
from llava.eval.oracle import Oracle, OraclePyramid
from llava.eval.preparing import QuestionDataset, drawn_over, load_picture
from llava.eval.settings import RunSettings, fingerprint
from visiondrop import Reducer
from visiondrop.draw import Panel, draw_rows, first_panel, panel_of, stage_panels

MOST_PANELS = 6  # in one row of a drawing


@dataclass(frozen=True)
class Models:
    """Where the models of the two runs are, as far as somebody said.

    Attributes:
        default: tried where nothing is said.
    """

    a: str | None = None
    b: str | None = None
    default: str | None = None
    device: str = "auto"


@dataclass
class Drawn:
    """What is to be shown of one change.

    Attributes:
        sheet: the picture, and the tokens that each run kept of it; None without a picture.
        notes: what is missing or differs.
        traces: "a" and "b" -> what was kept, merged and dropped, for JSON.
    """

    change: Change
    sheet: Image.Image | None = None
    notes: list[str] = field(default_factory=list)
    traces: dict[str, Any] = field(default_factory=dict)


def choose(compared: Compared, count: int) -> list[Change]:
    """The changes to draw: a fall and a rise of the score in turn, then changed texts."""
    turns = zip_longest(compared.of("worse"), compared.of("better"))
    changes = [change for turn in turns for change in turn if change is not None]
    return [*changes, *compared.of("text")][:count]


def redraw(
    compared: Compared, chosen: Sequence[Change], models: Models
) -> tuple[list[Drawn], list[str]]:
    """Drawings of the chosen changes, in order, and what could not be drawn at all and why.

    Raises EvalError for a model that was named and is not the run's."""
    drawn = [Drawn(change) for change in chosen]
    panels: list[dict[str, list[Panel]]] = [{} for _ in drawn]
    notes: list[str] = []
    usable = _with_pictures(compared.questions, drawn)
    if usable:
        cache: dict[ModelChoice, LoadedModel] = {}
        for letter, run, path in (("a", compared.a, models.a), ("b", compared.b, models.b)):
            side = _Side(compared.questions, letter, run)
            try:
                choice = side.model(path, models)
            except _NotDrawable as reason:
                notes.append(f"{letter.upper()}'s tokens are not drawn: {reason}")
                continue
            if choice not in cache:
                cache[choice] = load_model(choice)
            fault = side.draw(cache[choice], [(drawn[i], panels[i]) for i in usable])
            if fault:
                notes.append(f"{letter.upper()}'s tokens are not drawn: {fault}")
    for i in usable:
        drawn[i].sheet = _sheet(compared.questions, drawn[i], panels[i])
    return drawn, notes


def _with_pictures(questions: Questions, drawn: Sequence[Drawn]) -> list[int]:
    """Places of those whose picture can be read; the others get a note."""
    usable = []
    for i, one in enumerate(drawn):
        name = one.change.sample.image
        if name is None:
            one.notes.append("a question without a picture")
            continue
        try:
            load_picture(questions.benchmark.pictures(questions.files).find(name))
            usable.append(i)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            one.notes.append(f"picture {name} cannot be read: {error}")
    return usable


class _NotDrawable(Exception):
    """Why a run's tokens cannot be drawn."""


@dataclass
class _Side:
    """One of the two runs."""

    questions: Questions
    letter: str
    run: Run

    def model(self, named: str | None, models: Models) -> ModelChoice:
        """The checkpoint that made the run, checked by its files."""
        if self.run.plain:
            raise _NotDrawable("nothing says which model and method made a plain answers file")
        result = next(iter(self.run.seeds.values())).result
        path, wanted = named or models.default, result.get("model_fingerprint")
        flag = "--model-path" if self.letter == "a" else "--model-path-b (or --model-path)"
        if path is None:
            raise _NotDrawable(f"give its model ({result['model']}) with {flag}")
        choice = ModelChoice(
            path,
            base=result.get("model_base"),
            dtype=result["dtype"],
            device=models.device,
            attn_implementation=result["attn_implementation"],
            load_8bit=result.get("quantisation") == "8bit",
            load_4bit=result.get("quantisation") == "4bit",
        )
        there = fingerprint(path)
        if choice.name != result["model"] or (wanted and there != wanted):
            text = (
                f"{path} is not the model that run {self.letter.upper()} was made with "
                f"({result['model']}, files {str(wanted)[:12]}...; there: {str(there)[:12]}...)"
            )
            if named is None:
                raise _NotDrawable(f"{text}; give its model with {flag}")
            raise EvalError(f"{text}; give the right one with {flag}, or leave out --pictures")
        if choice.dtype == "float16" and choice.device_name == "cpu":
            raise _NotDrawable("it was made in float16, which needs a GPU")
        return choice

    def method(self, seed: SeedRun) -> Any:
        """The method as it was run."""
        config = dict(seed.result["method_config"])
        if config.pop("regions_sha256", None) is not None:
            benchmark, files = self.questions.benchmark, self.questions.files
            regions = benchmark.regions(self.questions.samples, files)
            kind = {oracle.name: oracle for oracle in (Oracle, OraclePyramid)}[config.pop("name")]
            return kind(regions=regions, **config)
        return Reducer.from_dict(config)

    def settings(self, seed: SeedRun) -> RunSettings:
        """The settings that its result json holds."""
        result = seed.result
        given = asdict(RunSettings("", None, "", {}))
        known = {name: result[name] for name in given if name in result and name != "method"}
        known["questions"] = result["questions_sha256"]
        return RunSettings(**{**known, "method": result["method_config"]})

    def draw(
        self, loaded: LoadedModel, wanted: Sequence[tuple[Drawn, dict[str, list[Panel]]]]
    ) -> str | None:
        """Answer again, and add panels and traces; the reason where the method cannot run."""
        place = 0 if self.letter == "a" else 1
        for name in dict.fromkeys(drawn.change.seeds[place] for drawn, _ in wanted):
            seed = self.run.seeds[name]
            mine = [(d, panels) for d, panels in wanted if d.change.seeds[place] == name]
            settings = self.settings(seed)
            dataset = dataset_of(
                loaded,
                [drawn.change.sample for drawn, _ in mine],
                self.questions.benchmark.pictures(self.questions.files),
                settings,
            )
            try:
                with torch.inference_mode(), self.method(seed)(loaded.model) as trace:
                    for i, (drawn, panels) in enumerate(mine):
                        trace.clear()
                        self._one(loaded, trace, dataset, i, settings, drawn, panels)
            except (ValueError, TypeError) as error:
                return str(error)
        return None

    def _one(
        self,
        loaded: LoadedModel,
        trace: Any,
        dataset: QuestionDataset,
        i: int,
        settings: RunSettings,
        drawn: Drawn,
        panels: dict[str, list[Panel]],
    ) -> None:
        prepared, sample = dataset[i], drawn.change.sample
        assert prepared.image is not None, "pictures that cannot be read were left out"
        (text,), _ = generate(loaded, [prepared], [sample], settings, trace)
        found, letter = trace.samples[0], self.letter.upper()
        before = drawn.change.texts[0 if self.letter == "a" else 1]
        if text != before:
            drawn.notes.append(
                f"asked again, {letter} says {text!r} in place of {before!r}; the drawing is of "
                "the new answer"
            )
        seen = drawn_over(prepared, dataset, loaded.image_processor)
        stages = stage_panels(found, seen, trace.grid)
        plain, _ = first_panel(found, seen, trace.grid)
        unpruned = [(plain, f"all {found.tokens_per_layer[-1]} tokens")]
        panels[self.letter] = [(panel, f"{letter}: {title}") for panel, title in stages or unpruned]
        drawn.traces[self.letter] = found.to_dict()


def _sheet(questions: Questions, drawn: Drawn, panels: dict[str, list[Panel]]) -> Image.Image:
    """The picture, what A kept and what B kept; in a row, or one below the other where long."""
    name = drawn.change.sample.image
    assert name is not None, "only changes with a picture are drawn"
    rows = [own for own in (panels.get("a"), panels.get("b")) if own]
    pictures = questions.benchmark.pictures(questions.files)
    if hasattr(pictures, "frames"):  # the frames of a clip are a row of their own
        return draw_rows([[panel] for own in rows for panel in own])
    first = (panel_of(load_picture(pictures.find(name))), "picture")
    if any("stages" in trace and not trace["stages"] for trace in drawn.traces.values()):
        return draw_rows([[panel for own in rows for panel in own]])  # it shows the picture plain
    if 1 + sum(map(len, rows)) <= MOST_PANELS:
        return draw_rows([[first, *(panel for own in rows for panel in own)]])
    return draw_rows([[first, *own] for own in rows])


def save(drawn: Sequence[Drawn], folder: Path) -> dict[int, str]:
    """Write the sheets as 01.png, 02.png, ...; place among the drawn -> name below ``folder``'s
    parent."""
    names = {}
    folder.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(drawn):
        if one.sheet is not None:
            file = folder / f"{i + 1:02}.png"
            one.sheet.save(file)
            names[i] = f"{folder.name}/{file.name}"
    return names
