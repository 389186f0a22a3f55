"""The numbers of docs/findings.md: measured by the commands beside them, and checked again.

    python -m analysis.findings measure         # run every study at length, keep the numbers
    python -m analysis.findings check           # run them on fewer pictures; 1 where one has moved
    python -m analysis.findings write           # put the numbers into docs/findings.md

docs/findings.json says which command makes which number; docs/results/findings.json keeps what was
measured, at length and on the fewer pictures that `check` runs. A number has moved where the short
run is off by more than a part of the interval that the same short run had, or where its interval
and the long run's have nothing in common.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.errors import EXIT_OK, EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.result import versions

__all__ = ["Finding", "Measured", "Plan", "check", "main", "measure", "moved", "read_plan"]

PLAN = Path("docs/findings.json")
KEPT = Path("docs/results/findings.json")
PAGE = Path("docs/findings.md")
OUT = Path("outputs/findings")
LENGTHS = ("long", "short")
ROUNDING = 0.02
"""By how much a number may differ whose interval has no width, as all pictures agree: another
machine rounds otherwise."""
PART = 0.25
"""By what part of its interval's width a number may differ otherwise: the short run looks at the
same pictures each time."""


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval over pictures; n questions."""

    value: float
    low: float
    high: float
    n: int

    def text(self, digits: int) -> str:
        """As tables print it."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True)
class Finding:
    """Where a number stands.

    Attributes:
        name: by which it is kept.
        claim: the section of the page that it belongs to.
        says: what it is, in words.
        study: the command that makes it; table: the CSV that holds it, without ending.
        where: the values that its row has, by column, null where it has none; one row must have
            them all.
        value, low, high, n: columns of the number, its interval and its questions.
        digits: that the page prints.
    """

    name: str
    claim: str
    says: str
    study: str
    table: str
    where: Mapping[str, Any]
    value: str
    low: str = "low"
    high: str = "high"
    n: str = "n"
    digits: int = 3


@dataclass(frozen=True)
class Study:
    """A command: `python -m MODULE FLAGS`, at both lengths."""

    module: str
    long: tuple[str, ...]
    short: tuple[str, ...]

    def flags(self, length: str) -> tuple[str, ...]:
        """Without --out."""
        return self.long if length == "long" else self.short

    def command(self) -> str:
        """As the page prints it."""
        return " ".join(["python -m", self.module, *self.long])


@dataclass(frozen=True)
class Plan:
    """What docs/findings.json holds."""

    studies: Mapping[str, Study]
    findings: Sequence[Finding]


def read_plan(path: Path = PLAN) -> Plan:
    """Raises `EvalError` for a plan that does not hold together."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        studies = {
            name: Study(s["module"], tuple(s["long"]), tuple(s["short"]))
            for name, s in data["studies"].items()
        }
        findings = [Finding(**entry) for entry in data["findings"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{path} is no plan of findings: {error!r}") from None
    names = [finding.name for finding in findings]
    for finding in findings:
        if finding.study not in studies:
            raise EvalError(f"{path}: {finding.name} is of no study ({finding.study!r})")
        if names.count(finding.name) > 1:
            raise EvalError(f"{path}: {finding.name!r} stands there twice")
    return Plan(studies, findings)


def look_up(finding: Finding, folder: Path) -> Measured:
    """The number in its table. Raises `EvalError` unless exactly one row is meant."""
    import pandas as pd

    path = folder / f"{finding.table}.csv"
    if not path.is_file():
        raise EvalError(f"{finding.name}: its command wrote no {path}")
    table = pd.read_csv(path)
    for column, value in finding.where.items():
        if column not in table:
            known = ", ".join(table.columns)
            raise EvalError(f"{finding.name}: {path} has no column {column!r}, it has {known}")
        table = table[table[column].isna() if value is None else table[column] == value]
    if len(table) != 1:
        raise EvalError(f"{finding.name}: {len(table)} rows of {path} are {dict(finding.where)}")
    row = table.iloc[0]
    value, low, high = (float(row[name]) for name in (finding.value, finding.low, finding.high))
    if not all(map(math.isfinite, (value, low, high))):
        raise EvalError(f"{finding.name}: {path} has no number there ({value} [{low}, {high}])")
    return Measured(value, low, high, n=int(row[finding.n]))


def run_study(study: Study, length: str, folder: Path) -> None:
    """Run its command in this process. Raises `EvalError` where it fails."""
    module = importlib.import_module(study.module)
    status = module.main([*study.flags(length), "--out", str(folder)])
    if status:
        raise EvalError(f"{study.command()} ended with status {status}")


def measure(
    plan: Plan,
    lengths: Sequence[str],
    out: Path,
    only: Sequence[str] = (),
    keep: Callable[[str, str, Measured], None] = lambda *_: None,
) -> dict[str, dict[str, Measured]]:
    """Name -> length -> number, study by study.

    Args:
        only: names of studies; all by default.
        keep: called with (name, length, number) as soon as a study is done.
    """
    if unknown := sorted(set(only) - set(plan.studies)):
        known = ", ".join(plan.studies)
        raise EvalError(f"no study is called {unknown[0]!r}; there are {known}")
    found: dict[str, dict[str, Measured]] = {}
    for length in lengths:
        for name, study in plan.studies.items():
            if only and name not in only:
                continue
            print(f"== {length}: python -m {study.module} {' '.join(study.flags(length))}")
            folder = out / length / name
            run_study(study, length, folder)
            for finding in plan.findings:
                if finding.study == name:
                    number = look_up(finding, folder)
                    found.setdefault(finding.name, {})[length] = number
                    keep(finding.name, length, number)
    return found


def read_kept(path: Path = KEPT) -> dict[str, dict[str, Measured]]:
    """What was measured before; empty where nothing was."""
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))["findings"]
    return {
        name: {length: Measured(**number) for length, number in lengths.items()}
        for name, lengths in kept.items()
    }


def write_kept(kept: Mapping[str, Mapping[str, Measured]], path: Path = KEPT) -> None:
    """Keep what was measured, with the versions that measured it."""
    numbers = {
        name: {length: vars(number) for length, number in sorted(lengths.items())}
        for name, lengths in sorted(kept.items())
    }
    write_atomically(
        path, json.dumps({"versions": versions(), "findings": numbers}, indent=1) + "\n"
    )


def moved(now: Measured, short: Measured, long: Measured) -> str:
    """Why a number is not what it was, in a few words; "" where it is.

    Args:
        now: measured again by the short run; short, long: as they were kept.
    """
    width = short.high - short.low
    room = PART * width if width > 1e-9 else ROUNDING * max(1.0, abs(short.value))
    if not abs(now.value - short.value) <= room:
        return f"{now.value:.4g} where the short run had {short.value:.4g}, give or take {room:.2g}"
    if now.low > long.high + room or now.high < long.low - room:
        return (
            f"[{now.low:.4g}, {now.high:.4g}] has nothing in common with the long run's "
            f"[{long.low:.4g}, {long.high:.4g}]"
        )
    return ""


def check(plan: Plan, kept: Mapping[str, Mapping[str, Measured]], out: Path, only: Sequence[str]):
    """Name -> why it has moved ("" where it has not), by short runs."""
    wanted = [f for f in plan.findings if not only or f.study in only]
    for finding in wanted:
        if set(kept.get(finding.name, {})) != set(LENGTHS):
            raise EvalError(
                f"{finding.name} was not measured at both lengths: python -m analysis.findings "
                f"measure --only {finding.study}"
            )
    now = measure(plan, ["short"], out, only)
    return {
        f.name: moved(now[f.name]["short"], kept[f.name]["short"], kept[f.name]["long"])
        for f in wanted
    }


# ---------------------------------------------------------------------- the page


def table_of(plan: Plan, kept: Mapping[str, Mapping[str, Measured]], claim: str) -> str:
    """The Markdown table of one claim, and the command that made it (or one a row)."""
    own = [finding for finding in plan.findings if finding.claim == claim]
    commands = list(dict.fromkeys(plan.studies[f.study].command() for f in own))
    alone = len(commands) == 1
    lines = ["| what | value, 95 % interval | n |", "| --- | ---: | ---: |"]
    for finding in own:
        number = kept[finding.name]["long"]
        says = finding.says
        if not alone:
            says += f" (`{plan.studies[finding.study].command()}`)"
        lines.append(f"| {says} | {number.text(finding.digits)} | {number.n} |")
    return "\n".join([*lines, "", f"Made by `{commands[0]}`."] if alone else lines)


def fill(page: str, plan: Plan, kept: Mapping[str, Mapping[str, Measured]]) -> str:
    """The page with each claim's numbers between its marks.

    Raises `EvalError` where page and plan have different claims.
    """
    pattern = re.compile(r"(<!-- findings:begin (\S+) -->\n).*?(<!-- findings:end -->)", re.DOTALL)
    marked = [match[2] for match in pattern.finditer(page)]
    claims = list(dict.fromkeys(finding.claim for finding in plan.findings))
    if sorted(marked) != sorted(claims):
        raise EvalError(f"the page has marks for {sorted(marked)}, the plan has {sorted(claims)}")
    return pattern.sub(lambda m: f"{m[1]}{table_of(plan, kept, m[2])}\n{m[3]}", page)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.findings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("measure", "check", "write"))
    parser.add_argument("--only", default="", help="studies, with commas between")
    parser.add_argument("--length", choices=LENGTHS, help="of measure; both by default")
    parser.add_argument("--out", type=Path, default=OUT, help="where the commands write")
    args = parser.parse_args(argv)
    plan, kept = read_plan(), read_kept()
    only = [name.strip() for name in args.only.split(",") if name.strip()]
    if args.what == "write":
        write_atomically(PAGE, fill(PAGE.read_text(encoding="utf-8"), plan, kept))
        print(f"wrote {PAGE}")
        return EXIT_OK
    if args.what == "measure":

        def keep(name: str, length: str, number: Measured) -> None:
            kept.setdefault(name, {})[length] = number
            write_kept(kept)

        names = {finding.name for finding in plan.findings}
        for gone in set(kept) - names:
            del kept[gone]
        measure(plan, [args.length] if args.length else LENGTHS, args.out, only, keep)
        print(f"wrote {KEPT}")
        return EXIT_OK
    reasons = check(plan, kept, args.out, only)
    for name, reason in reasons.items():
        print(f"{'MOVED' if reason else 'as it was':9}  {name}{': ' * bool(reason)}{reason}")
    return int(any(reasons.values()))


if __name__ == "__main__":
    sys.exit(run_main(main))
