"""A checkpoint and questions about pictures, and a walk over them with something applied.

The questions come from a benchmark's files (bundled or real), or are one question about each
picture of a folder. Only bundled data knows where the answers lie; what needs that says so
(`Unknown`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from analysis.cases import Case, Look, Unknown, case_of
from analysis.probe import Probe, Reading
from llava.eval.benchmarks import Benchmark, BenchmarkFiles, get_benchmark
from llava.eval.errors import EvalError
from llava.eval.generating import LoadedModel, generate_whole, traces_of
from llava.eval.loading import ModelChoice, default_aspect_ratio, load_model, refuse_clips
from llava.eval.pictures import Folder, Pictures
from llava.eval.preparing import Prepared, QuestionDataset, drawn_over
from llava.eval.result import versions
from llava.eval.samples import Sample, raw_question
from llava.eval.truth import OBJECTS, Objects, read_objects
from visiondrop import Geometry, Reducer, TowerCache
from visiondrop.adapters import geometry_of

__all__ = ["Case", "Look", "Setting", "Unknown", "open_setting", "picture_setting"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


@dataclass
class Setting:
    """A loaded checkpoint with its questions."""

    loaded: LoadedModel
    cases: list[Case]
    pictures: Pictures
    data: str
    batch_size: int = 12
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    conv_mode: str = "vicuna_v1"
    model_path: str = ""
    towers: TowerCache | None = None
    benchmark: tuple[Benchmark, BenchmarkFiles] | None = None
    _objects: dict[str, Objects] | None = field(default=None, repr=False)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.loaded.model

    @property
    def geometry(self) -> Geometry:
        """Its sizes."""
        return geometry_of(self.model)

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.geometry.num_layers

    @property
    def first_of_pictures(self) -> list[Case]:
        """One case a picture, the first."""
        return list({case.picture: case for case in reversed(self.cases)}.values())[::-1]

    def dataset(self, cases: Sequence[Case], blank: bool = False) -> QuestionDataset:
        """The cases as the model takes them."""
        config = self.model.config
        return QuestionDataset(
            [case.sample for case in cases],
            self.pictures,
            self.loaded.tokenizer,
            self.loaded.image_processor,
            config,
            self.conv_mode,
            default_aspect_ratio(config),
            blank,
        )

    def image(self, case: Case) -> Image.Image:
        """The picture as it is to be drawn over: padded as the model saw it, or whole where it is
        read in tiles.
        """
        dataset = self.dataset([case])
        drawn = drawn_over(dataset[0], dataset, self.loaded.image_processor)
        assert isinstance(drawn, Image.Image)
        return drawn

    def objects(self, case: Case) -> Objects:
        """The things that its picture shows. Raises `Unknown` where nobody knows."""
        if self._objects is None:
            if self.benchmark is None:
                raise Unknown(f"{self.data} does not say what its pictures show")
            files = self.benchmark[1]
            path = (files.types or files.questions.with_name("regions.json")).with_name(OBJECTS)
            if not path.is_file():
                raise Unknown(f"no {path}: only bundled data say what their pictures show")
            self._objects = read_objects(path)
        if case.picture not in self._objects:
            raise Unknown(f"what {case.picture} shows is not known")
        return self._objects[case.picture]

    def describe(self) -> dict[str, Any]:
        """What numbers depend on, for JSON."""
        return {
            "model": self.model_path or self.loaded.name,
            "data": self.data,
            "questions": len(self.cases),
            "pictures": len({case.picture for case in self.cases}),
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
            "device": str(self.model.device),
            "versions": versions(),
        }

    def walk(
        self,
        method: Reducer,
        cases: Sequence[Case] | None = None,
        *,
        label: str = "",
        blank: bool = False,
        change: Any = None,
    ) -> Iterator[Look]:
        """Read each case's prompt under a method (or a `Probe`), and show what happened.

        One prefill and no decoding beyond the first token. A progress bar shows how far it is.

        Args:
            cases: all by default.
            label: names the bar.
            blank: put a plain grey picture in place of each.
            change: what to do with each picture's tensor before the model sees it.

        Raises `EvalError` for a picture that cannot be read, naming it.
        """
        cases = self.cases if cases is None else cases
        dataset = self.dataset(cases, blank)
        towers = self.towers if change is None and not blank else None
        options = {
            "do_sample": False,
            "max_new_tokens": 1,
            "pad_token_id": self.loaded.pad_id,
            "use_cache": True,
        }
        quiet = tqdm(total=len(cases), desc=label, unit="q", leave=False)
        with quiet as bar, torch.inference_mode():
            with method(self.model, tower_cache=towers) as trace:
                for first in range(0, len(cases), self.batch_size):
                    batch = cases[first : first + self.batch_size]
                    prepared = [dataset[first + i] for i in range(len(batch))]
                    _refuse_errors(prepared, batch)
                    if change is not None:
                        for one in prepared:
                            one.image = change(one.image)
                    trace.clear()
                    if isinstance(method, Probe):
                        method.take()
                    samples = [case.sample for case in batch]
                    generate_whole(self.loaded, prepared, samples, trace, options)
                    yield from _looks(method, batch, traces_of(trace, prepared, 1))
                    bar.update(len(batch))


def _refuse_errors(prepared: Sequence[Prepared], cases: Sequence[Case]) -> None:
    for one, case in zip(prepared, cases, strict=True):
        if one.error is not None:
            raise EvalError(f"question {case.sample.question_id!r}: {one.error}")


def _looks(method: Reducer, cases: Sequence[Case], traces: Sequence[Any]) -> Iterator[Look]:
    own: dict[str, list[Reading]] = {}
    if isinstance(method, Probe):
        for reading in method.take():
            own.setdefault(reading.key, []).append(reading)
    for case, trace in zip(cases, traces, strict=True):
        found = own.get(case.sample.key, [])
        yield Look(case, trace, sorted(found, key=lambda r: -1 if r.layer is None else r.layer))


def open_setting(
    model_path: str = "",
    benchmark: str = "textvqa",
    data: str | None = None,
    *,
    limit: int | None = 240,
    model_base: str | None = None,
    batch_size: int = 12,
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    device: str = "auto",
    conv_mode: str = "vicuna_v1",
    loaded: LoadedModel | None = None,
) -> Setting:
    """A checkpoint with the first `limit` questions of a benchmark that have a picture.

    Args:
        model_path: folder or hub id; the bundled model by default.
        data: the benchmark's folder; the bundled one by default.
        loaded: a model that was loaded before, in place of loading `model_path`.

    Raises `EvalError` for what is not there or cannot be used, before any compute.
    """
    asked = get_benchmark(benchmark)
    files = asked.files(data or asked.default_data)
    if limit is not None and limit < 1:
        raise EvalError(f"limit must be at least 1, got {limit}; leave it out for all questions")
    samples = [sample for sample in asked.read(files) if sample.image is not None][:limit]
    pictures = asked.pictures(files)
    pictures.check(samples)
    entries = asked.region_entries(samples, files)
    path = model_path or asked.default_model
    choice = ModelChoice(path, model_base, dtype, device, attn_implementation)
    loaded = loaded or _load(choice)
    return Setting(
        loaded,
        [case_of(sample, entries.get(sample.key)) for sample in samples],
        pictures,
        str(data or asked.default_data),
        batch_size,
        choice.dtype_name,
        attn_implementation,
        conv_mode,
        choice.path,
        benchmark=(asked, files),
    )


def picture_setting(
    model_path: str,
    folder: str | Path,
    question: str,
    *,
    limit: int | None = None,
    model_base: str | None = None,
    batch_size: int = 12,
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    device: str = "auto",
    conv_mode: str = "vicuna_v1",
) -> Setting:
    """A checkpoint with one question about every picture of a folder, or about one file.

    Nothing is known of where the answers lie. Raises `EvalError` for a folder without pictures.
    """
    path = Path(folder)
    names = (
        [path.name]
        if path.is_file()
        else sorted(p.name for p in path.glob("*") if p.suffix.lower() in SUFFIXES)
    )
    root = path.parent if path.is_file() else path
    if not names:
        raise EvalError(f"no picture in {path}: give a folder with {', '.join(sorted(SUFFIXES))}")
    samples = [Sample(name, question, name) for name in names[:limit]]
    pictures = Folder(root)
    pictures.check(samples)
    choice = ModelChoice(model_path, model_base, dtype, device, attn_implementation)
    cases = [Case(sample, raw_question(sample.prompt)) for sample in samples]
    return Setting(
        _load(choice), cases, pictures, str(path), batch_size, choice.dtype_name,
        attn_implementation, conv_mode, choice.path,
    )  # fmt: skip


def _load(choice: ModelChoice) -> LoadedModel:
    loaded = load_model(choice)
    try:
        refuse_clips(loaded.model)
        geometry_of(loaded.model)
    except (TypeError, ValueError) as error:
        raise EvalError(str(error)) from None
    return loaded
