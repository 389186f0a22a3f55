"""The engine's benchmark on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import engine
from visiondrop.engine.buckets import WASTE


def test_cases_took_the_ways_they_are_named_by(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    given = ["--backend", "eager", "--repeats", "2", "--methods", "visiondrop"]
    content = engine.main([*given, "--json", str(file)])
    plain, compiled = content["cases"]
    assert (plain["engine"], compiled["engine"]) == ("none", "compiled")
    assert plain["ratio"]["median"] == 1 and plain["ms"]["count"] == 2
    assert not any("prefill" in path for path in plain["paths"])
    assert compiled["paths"]["prefill:compiled"] == 4
    assert compiled["making"] > 0
    (padding,) = content["padding"]
    assert 0 < padding["padding"] < WASTE and padding["lengths"] <= padding["recordings"]
    assert json.loads(file.read_text())["padding"] == [padding]
