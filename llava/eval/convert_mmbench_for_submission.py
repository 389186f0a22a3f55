"""MMBench answers as the xlsx that its server takes.

    python scripts/convert_mmbench_for_submission.py --annotation-file mmbench_dev_20230712.tsv \\
        --result-dir answers --upload-dir answers_upload --experiment llava-v1.5-7b

reads ``RESULT_DIR/EXPERIMENT.jsonl`` and writes ``UPLOAD_DIR/EXPERIMENT.xlsx``: one row a row of
the tsv and in its order, without picture, hint and categories, the answer as it was given in a
column ``prediction``.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.errors import EXIT_FAILED_SAMPLES, EXIT_OK, EvalError, run_main
from llava.eval.eval_mmbench import judge
from llava.eval.files import write_atomically
from llava.eval.labels import read_answers
from llava.eval.mmbench_tsv import Table, is_empty, read_table

LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
PLACE = 6  # of the predictions among the columns that stay, after the options


def require_openpyxl() -> Any:
    """The package; EvalError says how to get it."""
    try:
        import openpyxl
    except ImportError:
        raise EvalError(
            "MMBench's upload file needs openpyxl, which is not here; pip install openpyxl, or "
            "install the extra 'eval'"
        ) from None
    return openpyxl


def upload_rows(table: Table, rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The sheet's rows, column names first; a row without an answer has None for prediction.

    EvalError for answers that are not of this file."""
    judge(rows, table)
    texts = {row["question_id"]: row["text"] for row in rows if not row.get("round_id")}
    names = [name for name in table.columns if name not in LEFT_OUT]
    lines: list[list[Any]] = [[*names[:PLACE], "prediction", *names[PLACE:]]]
    for question in sorted(table.rows, key=lambda question: question.line):
        cells: list[Any] = [
            question.index if name == "index" else _cell(question.cells[name]) for name in names
        ]
        cells.insert(PLACE, texts.get(question.index))
        lines.append(cells)
    return lines


def _cell(text: str) -> str | None:
    return None if is_empty(text) else text


def write_upload(path: str | Path, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write the xlsx in one step; returns how many rows have no answer."""
    openpyxl = require_openpyxl()
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = openpyxl.Workbook()
    sheet = book.active
    lines = upload_rows(table, rows)
    for r, line in enumerate(lines, start=1):
        for c, value in enumerate(line, start=1):
            if isinstance(value, str):
                value = ILLEGAL_CHARACTERS_RE.sub("", value)
            cell = sheet.cell(r, c, value)
            if isinstance(value, str):
                cell.data_type = "s"  # "=B" is an answer, no formula
    stream = io.BytesIO()
    book.save(stream)
    write_atomically(path, stream.getvalue())
    return sum(line[PLACE] is None for line in lines)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description="MMBench answers as the server's xlsx.")
    p.add_argument("--annotation-file", required=True, help="the tsv that was answered")
    p.add_argument("--result-dir", required=True, help="folder of EXPERIMENT.jsonl")
    p.add_argument("--upload-dir", required=True, help="folder for EXPERIMENT.xlsx")
    p.add_argument("--experiment", required=True, help="name of both files")
    args = p.parse_args(argv)
    require_openpyxl()
    table = read_table(args.annotation_file)
    answers = Path(args.result_dir) / f"{args.experiment}.jsonl"
    path = Path(args.upload_dir) / f"{args.experiment}.xlsx"
    missing = write_upload(path, table, read_answers(answers))
    print(f"{path}: {len(table.rows)} rows")
    if missing:
        print(
            f"{missing} of {len(table.rows)} rows have no answer in {answers}; answer the whole "
            "file before you upload it",
            file=sys.stderr,
        )
    return EXIT_FAILED_SAMPLES if missing else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
