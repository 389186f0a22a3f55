"""What `analysis.scoring_comparison` says in words: the grid for terminals and Markdown, and which
score is surely better or worse than the text's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llava.eval.table import markdown
from llava.eval.tables.scores import ORACLE, SCORES
from llava.eval.tables.spec import FULL

if TYPE_CHECKING:
    import pandas as pd

TITLES = {FULL: "all tokens", **SCORES, ORACLE: "oracle"}
GENERATED = (
    "- The bundled model knows generated scenes and answers in a word: what holds for it need not "
    "hold for a 7B model on photographs."
)
BETTER, WORSE = "▲", "▼"


def mark(low: float, high: float) -> str:
    """Which side of 0 an interval lies on; "" where it holds 0 or there is none."""
    return BETTER if low > 0 else WORSE if high < 0 else ""


def grid(table: pd.DataFrame) -> pd.DataFrame:
    """A line for each budget and score, a column for each benchmark: its score, with a mark where
    it is surely above or below the last text token's at the same budget.
    """
    import pandas as pd

    titles = dict(zip(table["benchmark"], table["title"]))
    lines: dict[tuple[float, str], dict[str, str]] = {}
    for row in table.itertuples():
        asked = float("inf") if row.score == FULL else float(row.asked)
        line = lines.setdefault(
            (-asked, row.score),
            {"tokens": f"{row.mean_tokens:.1f}", "score": TITLES[row.score]},
        )
        sign = mark(row.difference_low, row.difference_high)
        line[titles[row.benchmark]] = f"{row.accuracy:.1f} {sign}".rstrip()
    order = list(TITLES)
    keys = sorted(lines, key=lambda key: (key[0], order.index(key[1])))
    columns = ["tokens", "score", *titles.values()]
    return pd.DataFrame([lines[key] for key in keys], columns=columns)


def reading(table: pd.DataFrame) -> list[str]:
    """A sentence for each score: in how many cells it is surely above or below the text's, and its
    mean difference over benchmarks at each budget.
    """
    out = []
    for name in TITLES:
        own = table[(table["score"] == name) & table["difference"].notna()]
        if not len(own):
            continue
        signs = [mark(r.difference_low, r.difference_high) for r in own.itertuples()]
        means = ", ".join(
            f"{cells['difference'].mean():+.1f} at {asked:g}"
            for asked, cells in sorted(own.groupby("asked"), key=lambda item: -item[0])
        )
        out.append(
            f"{TITLES[name]}: surely above the last text token in {signs.count(BETTER)} of "
            f"{len(own)} cells, surely below in {signs.count(WORSE)}; mean difference over "
            f"benchmarks {means} tokens"
        )
    return out


def markdown_text(
    table: pd.DataFrame, facts: Mapping[str, Any], stem: str, drawn: bool, made_by: str
) -> str:
    """The Markdown file beside the table.

    Args:
        facts: of `scoring_comparison.about`.
        stem: of the figure, which lies beside the file.
        drawn: whether there is one.
        made_by: the command.
    """
    shown = grid(table)
    seeds = int(table["seeds"].max())
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    parts = ["# One schedule, only the score swapped\n"]
    if drawn:
        parts.append(f"![accuracy by budget, a line for each score]({stem}.png)\n")
    parts += [
        "PyramidDrop's stages, at the same layers and with the same counts at each budget; only "
        "who judges which tokens stay differs. tokens: true mean over decoder layers. random: mean "
        f"of {seeds} seed{'s' * (seeds > 1)}. uniform: evenly spaced among what is left. oracle: "
        f"what the question asks for first, then uniform. {BETTER} {WORSE}: the paired 95 % "
        "bootstrap interval of the difference to the last text token's score at the same budget "
        "(whole pictures drawn) lies above or below 0.\n",
        markdown(list(shown.columns), shown.fillna("-").values.tolist()),
        "## Reading\n",
        *[f"- {line}." for line in reading(table)],
        *([GENERATED] if str(facts["model"]).startswith("pocket") else []),
        "\n## Settings\n",
        f"- {facts['model']}, batch {facts['batch_size']}, {facts['dtype']}, "
        f"{facts['attn_implementation']} on {facts['device']}; {versions}",
        *[
            f"- {name}: {entry['metric']}, split {entry['split']}, "
            f"{'all' if entry['whole'] else 'the first'} {entry['questions']} questions, "
            f"{entry['pictures']} pictures"
            for name, entry in facts["benchmarks"].items()
        ],
        *[
            f"- at {asked:g} tokens: from layers {', '.join(layers.split())} on "
            f"{', '.join(kept.split())} tokens"
            for (asked, layers, kept), _ in table[table["score"] != FULL].groupby(
                ["asked", "layers", "kept"], sort=False
            )
        ],
        *[f"- not run: {line}" for line in facts["not_run"]],
        f"\nMade by `{made_by}`; every cell with its intervals is in the CSV.\n",
    ]
    return "\n".join(parts)
