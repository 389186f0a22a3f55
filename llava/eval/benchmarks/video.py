"""TGIF-QA (FrameQA), MSVD-QA and MSRVTT-QA in Video-LLaVA's file formats: questions about clips.

Jang et al., "TGIF-QA", CVPR 2017; Xu et al., "Video Question Answering via Gradually Refined
Attention", ACM MM 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores, require_files
from llava.eval.clips import ClipFolder
from llava.eval.convert_video_for_gpt import convert
from llava.eval.errors import EvalError
from llava.eval.eval_video import ClipQuestion, load_questions, samples_of, score_rows
from llava.eval.files import write_atomically
from llava.eval.labels import by_type, question_ids
from llava.eval.oracle import Regions, read_regions
from llava.eval.samples import Sample

HINT = (
    "docs/evaluation.md and docs/data.md say where to get the files (Video-LLaVA's own); DATA or "
    "--data says where they are, and without either the bundled clips are taken"
)
POCKET_VIDEO = "checkpoints/pocket-video-llava"
GPT_FILE = "merge.jsonl"  # as Video-LLaVA's scripts name it


class ClipBenchmark(Benchmark):
    """Normalised exact match over questions about clips.

    Attributes:
        folders: where the clips may be below the data folder, as Video-LLaVA lays them out first.
    """

    metric = "exact match, no GPT"
    default_model = POCKET_VIDEO
    bundled_batch = 8
    beside = ("contained",)
    lacks: Mapping[str, str] = {}
    folders: tuple[str, ...] = ("videos",)

    def files(self, data: str | Path) -> BenchmarkFiles:
        data = Path(data)
        found = [data / name for name in self.folders if (data / name).is_dir()]
        clips = found[0] if found else data / self.folders[0]
        questions, answers = data / "test_q.json", data / "test_a.json"
        require_files(
            self.title, {"questions": questions, "answers": answers, "clips": clips}, HINT
        )
        types = data / "regions.json"
        return BenchmarkFiles(questions, clips, answers, types if types.is_file() else None, "test")

    def read(self, files: BenchmarkFiles) -> list[Sample]:
        return samples_of(self._questions(files))

    def pictures(self, files: BenchmarkFiles) -> ClipFolder:
        return ClipFolder(files.images)

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        question_ids(samples, files.questions)

    def regions(self, samples: Sequence[Sample], files: BenchmarkFiles) -> Regions:
        raise EvalError("the method 'oracle' keeps patches of single pictures; these are clips")

    def _questions(self, files: BenchmarkFiles) -> list[ClipQuestion]:
        return load_questions(files.questions, files.answers)

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        right, held, asked = score_rows(rows, self._questions(files), files.questions)
        known = read_regions(files.types) if files.types else {}
        kinds = [
            str(known.get((str(q.question_id), q.text), {}).get("type", q.kind)) for q in asked
        ]
        return Scores(
            100 * sum(right) / len(right),
            right,
            by_type(right, [kind or None for kind in kinds]),
            {"contained": 100 * sum(held) / len(held)},
            kinds=[(kind,) if kind else () for kind in kinds],
            right=[q.answer for q in asked],
        )

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """The file that GPT-assisted scoring reads."""
        path = folder / GPT_FILE
        write_atomically(path, convert(rows, self._questions(files)))
        return [path]


class TGIF(ClipBenchmark):
    """TGIF-QA's frame questions, about animated GIFs."""

    name = "tgif"
    title = "TGIF-QA"
    default_data = "playground/data/eval/tgif"
    folders = ("mp4", "gifs", "videos")


class MSVD(ClipBenchmark):
    """MSVD-QA."""

    name = "msvd"
    title = "MSVD-QA"
    default_data = "playground/data/eval/msvd"
    folders = ("videos",)


class MSRVTT(ClipBenchmark):
    """MSRVTT-QA."""

    name = "msrvtt"
    title = "MSRVTT-QA"
    default_data = "playground/data/eval/msrvtt"
    folders = ("videos/all", "videos")
