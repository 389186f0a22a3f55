"""The table of methods: paper, place, signal, options and presets.

    python -m visiondrop.methods                    # all of them
    python -m visiondrop.methods fastv visionzip    # some, each with its docstring
    python -m visiondrop.methods --markdown         # as in docs/methods.md
    python -m visiondrop.methods --json

What stands there is read from the classes: nothing is written down twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from visiondrop.methods import METHODS
from visiondrop.reducer import Reducer

HEAD = ("method", "title", "paper", "where", "signal")
GAP = 2
LEAST = 12  # the least width of a column that is wrapped


def text_of(value: Any) -> str:
    """A value as one types it: JSON, strings without quotes."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def options_of(cls: type[Reducer]) -> dict[str, Any]:
    """The fields with their defaults; a field that must be given has `dataclasses.MISSING`."""
    out = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        made = field.default_factory
        out[field.name] = field.default if made is dataclasses.MISSING else made()
    return out


def settings_text(settings: Mapping[str, Any]) -> str:
    """`name=value, ...`; a value that must be given is shown by its name alone."""
    return ", ".join(
        name if value is dataclasses.MISSING else f"{name}={text_of(value)}"
        for name, value in settings.items()
    )


def presets(cls: type[Reducer]) -> list[tuple[str, Mapping[str, Any]]]:
    """The presets by name; an empty one has the defaults."""
    return list(cls.presets.items())


def presets_text(cls: type[Reducer]) -> str:
    """`name@preset (field=value, ...); ...`"""
    return "; ".join(f"{cls.name}@{name} ({settings_text(s)})" for name, s in presets(cls))


def cells(cls: type[Reducer]) -> tuple[str, ...]:
    """A method's row under `HEAD`."""
    needs = f" (needs {', '.join(cls.needs)})" if cls.needs else ""
    return cls.name, cls.title, cls.paper or "-", (cls.where or "-") + needs, cls.signal or "-"


def widths_for(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Column widths that fit into `width`: the widest columns are wrapped first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    while sum(widths) + GAP * (len(widths) - 1) > width and max(widths[1:]) > LEAST:
        widest = max(range(1, len(widths)), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def layout(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One row as lines, its cells wrapped."""
    columns = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, widths, strict=True)]
    height = max(map(len, columns))
    filled = [column + [""] * (height - len(column)) for column in columns]
    return [
        (" " * GAP).join(f"{part:<{w}}" for part, w in zip(line, widths, strict=True)).rstrip()
        for line in zip(*filled, strict=True)
    ]


def terminal_table(classes: Iterable[type[Reducer]], width: int) -> str:
    """The table for a terminal of `width` columns: options and presets below each row."""
    classes = list(classes)
    rows = [cells(cls) for cls in classes]
    widths = widths_for([HEAD, *rows], width)
    indent = " " * (widths[0] + GAP)
    lines = [*layout(HEAD, widths), (" " * GAP).join("-" * w for w in widths)]
    for cls, row in zip(classes, rows, strict=True):
        lines += layout(row, widths)
        for name, text in (
            ("options", settings_text(options_of(cls))),
            ("presets", presets_text(cls)),
        ):
            if text:
                lines += textwrap.wrap(
                    f"{name}: {text}",
                    max(width, len(indent) + LEAST),
                    initial_indent=indent,
                    subsequent_indent=indent + "  ",
                    break_on_hyphens=False,
                )
    return "\n".join(lines) + "\n"


def markdown_table(classes: Iterable[type[Reducer]]) -> str:
    """The table in Markdown, papers on arXiv as links; options and presets as a list below."""

    def cell(text: str) -> str:
        text = text.replace("|", "\\|")
        return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)

    classes = list(classes)
    lines = [f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|"]
    for cls in classes:
        name, *rest = cells(cls)
        lines.append("| " + " | ".join([f"`{name}`", *map(cell, rest)]) + " |")
    lines += ["", "Options with their defaults, and presets (`NAME@PRESET`):", ""]
    for cls in classes:
        options = settings_text(options_of(cls))
        parts = [f"`{options}`"] if options else []
        if cls.presets:
            parts.append("; ".join(f"`@{p}` {settings_text(s)}".strip() for p, s in presets(cls)))
        lines.append(f"- `{cls.name}`: {'. '.join(parts) or 'no options'}")
    return "\n".join(lines) + "\n"


def to_json(classes: Iterable[type[Reducer]]) -> str:
    """The same for programs."""
    content = [
        {
            "name": cls.name,
            "title": cls.title,
            "paper": cls.paper,
            "where": cls.where,
            "signal": cls.signal,
            "needs": list(cls.needs),
            "options": {k: None if v is dataclasses.MISSING else v
                        for k, v in options_of(cls).items()},
            "presets": {name: dict(settings) for name, settings in presets(cls)},
        }
        for cls in classes
    ]  # fmt: skip
    return json.dumps(content, indent=1, default=str) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m visiondrop.methods", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="these methods only, at length")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--width", type=int, default=None, help="columns (the terminal's)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in METHODS]:
        print(f"error: unknown method {unknown[0]!r}; known: {', '.join(METHODS)}", file=sys.stderr)
        return 2
    classes = [METHODS[name] for name in args.names or METHODS]
    width = args.width or shutil.get_terminal_size((100, 24)).columns
    if args.json:
        print(to_json(classes), end="")
    elif args.markdown:
        print(markdown_table(classes), end="")
    else:
        print(terminal_table(classes, width), end="")
        for cls in classes if args.names else ():
            print(f"\n{cls.name}\n{'-' * len(cls.name)}\n{inspect.cleandoc(cls.__doc__ or '')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
