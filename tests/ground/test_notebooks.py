"""Notebooks are thin, valid, and committed with the outputs of a whole run.

`scripts/test.sh` executes them (nbmake); here is what an execution does not tell.
"""

from pathlib import Path

import nbformat
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks_and_they_are_executed():
    assert NOTEBOOKS
    assert "pytest -q --nbmake notebooks" in (REPOSITORY / "scripts/test.sh").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_as_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell.outputs]
    assert outputs and not any(out.output_type == "error" for out in outputs)
    assert not any(out.get("name") == "stderr" for out in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_thin(path):
    """What is worth keeping is in the packages."""
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert sum(len(cell.splitlines()) for cell in cells) <= 120
    assert max(len(cell.splitlines()) for cell in cells) <= 40


def test_a_method_takes_about_twenty_lines():
    (path,) = (p for p in NOTEBOOKS if p.stem == "add_a_method")
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    (method,) = (cell for cell in cells if "class Loudest(PictureBudget)" in cell)
    lines = method[method.index("@dataclass") :].splitlines()
    assert len([line for line in lines if line.strip()]) <= 20
