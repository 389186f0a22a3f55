"""Run notebooks from top to bottom and keep their outputs, without the times of the run.

    python scripts/notebooks.py                    # all of notebooks/
    python scripts/notebooks.py 05                 # those whose name begins so

One that fails is left as it was.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
DROPPED = ("execution", "collapsed", "scrolled")


def run(path: Path) -> None:
    """Execute a notebook in place."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for name in DROPPED:
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            # What libraries warn about depends on the machine.
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def found(name: str) -> list[Path]:
    """Notebooks whose name begins so. Raises `SystemExit` where there is none."""
    paths = sorted(NOTEBOOKS.glob(f"{Path(name).stem}*.ipynb"))
    if not paths:
        known = ", ".join(path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb")))
        raise SystemExit(f"no notebook begins with {name!r}; there are: {known}")
    return paths


def main(names: list[str]) -> int:
    """Run the named notebooks; the exit status is the number that failed."""
    paths = [path for name in names for path in found(name)]
    failed = 0
    for path in paths or sorted(NOTEBOOKS.glob("*.ipynb")):
        start = time.perf_counter()
        try:
            run(path)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.stem}: failed\n{error}", file=sys.stderr)
        else:
            print(f"{path.stem}: {time.perf_counter() - start:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
