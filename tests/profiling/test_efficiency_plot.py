"""The figures of cost: their numbers, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import efficiency_plot as plot
from llava.eval.errors import EvalError


def test_curves_begin_at_the_published_model() -> None:
    """576 tokens: what docs/scaling.md says; KV bytes from their definition."""
    curves = {share: plot.curve(share) for share in (1, 9, 18)}
    for share, tera in ((1, 8.92), (9, 2.06), (18, 1.64)):
        first, last = curves[share][0], curves[share][-1]
        assert first.flops / 1e12 == pytest.approx(tera, abs=0.005)
        assert (first.tokens, last.tokens) == (576, 11520) and len(curves[share]) == 20
        for point in curves[share]:
            assert point.mean == pytest.approx(point.tokens / share, abs=0.5)
            assert point.cache == pytest.approx(2 * 32 * 4096 * 2 * (point.mean + 66), rel=1e-12)
            assert point.tower == point.tokens / 576 * first.tower
    ratios = [f.flops / p.flops for f, p in zip(curves[1], curves[9], strict=True)]
    assert ratios == sorted(ratios), "attention makes long pictures dearer than their length"


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "p.json"
    content = {
        "settings": {
            "model": "m",
            "clock": "wall",
            "weights": "random",
            "dtype": "float16",
            "batch": 1,
            "attention": "sdpa",
            "new_tokens": [1, 16],
            "repeats": 3,
            "visual_tokens": 576,
            "text_tokens": 66,
            "device": "cuda",
        },
        "versions": {"torch": "2", "transformers": "5"},
        "machine": {"device": "d", "threads": 1},
        "rows": rows,
    }
    path.write_text(json.dumps(content))
    return path


def row(method: str, tokens: float | None, tera: float | None, faster: float) -> dict[str, Any]:
    spread = {"low": faster - 0.1, "median": faster, "high": faster + 0.2, "count": 3}
    return {"method": method, "tokens": tokens, "tflops_run": tera, "ttft_ms": spread,
            "faster": {"1": spread, "16": spread}, "of_rest": spread if tokens else None,
            "kv_bytes": None if tera is None else int(tera)}  # fmt: skip


def test_measured_points_and_files(tmp_path: Path) -> None:
    rows = [
        row("full", None, 8.0, 1.0), row("visiondrop", 64, 2.0, 3.0), row("fastv", 64, 4.0, 1.5),
        row("tome", 64, None, 1.2), {"method": "dart", "tokens": 64, "ttft_ms": None},
    ]  # fmt: skip
    path = written(tmp_path, rows)
    found, facts = plot.read_profile(path)
    assert found == [
        plot.Measured("visiondrop", 64, 4.0, (2.9, 3.0, 3.2)),
        plot.Measured("fastv", 64, 2.0, (1.4, 1.5, 1.7)),
    ]
    assert facts["model"] == "m" and facts["device"] == "d"
    out = ["--out", str(tmp_path / "new"), "--markdown", str(tmp_path / "ratios.md")]
    assert plot.main(["--profile", str(path), *out]) == 0
    text = (tmp_path / "ratios.md").read_text()
    assert "| visiondrop | 64 | 4.00 | 3.00 (2.90 to 3.20) | 3.00 (2.90 to 3.20) |" in text
    assert "300.0 (290.0 to 320.0) % | 25 % |" in text, "choosing over the rest, and the cache"
    assert "| tome | 64 | - | 1.20 (1.10 to 1.40) |" in text and "dart" not in text
    assert "16 new tokens" in text and "of 3 turns" in text and "d. Made by" in text
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        f"{stem}.{kind}" for stem in (plot.CURVES, plot.SPEEDUP) for kind in ("png", "pdf")
    }


def test_profiles_without_what_is_drawn_are_refused(tmp_path: Path) -> None:
    for rows, says in (
        ([row("visiondrop", 64, 2.0, 3.0)], "no profile with times of the method full"),
        ([row("full", None, 8.0, 1.0)], "no row of a method with a budget"),
    ):
        path = written(tmp_path, rows)
        with pytest.raises(EvalError, match=says):
            plot.main(["--profile", str(path), "--out", str(tmp_path / "new")])
    with pytest.raises(EvalError, match="No such file"):
        plot.main(["--profile", str(tmp_path / "none"), "--out", str(tmp_path / "new")])
    with pytest.raises(EvalError, match="ratios are of a profile; give --profile"):
        plot.main(["--markdown", "a.md", "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
