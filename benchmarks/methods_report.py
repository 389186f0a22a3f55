"""The report of `benchmarks.methods`: its rows, its tables, and what exceeds the limit."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

MACHINE = ("device", "threads", "dtype", "torch", "transformers")
"""What the report says of the machine."""

LIMIT = 0.1
"""The share of the rest that a choice should not exceed."""

FORCED = {
    "divprune": "one step for each kept token, over all candidates",
    "cdpruner": "one DPP step for each kept token; a text encoder reads the question",
    "trim": "a text encoder reads the question",
    "scope": "one greedy step for each kept token, over all pairs",
    "visiondrop_div": "one greedy step for each kept token, over all pairs, at four places",
    "vispruner": "rounds that drop 8 tokens each, one after the other, over all that is left",
    "tome": "matches tokens in every block of the vision tower",
    "visiondrop": "scores by all visual queries at three decoder layers",
    "pyramiddrop": "projects all tokens anew at three decoder layers",
    "sparsevlm": "rates, ranks and clusters at three decoder layers",
    "sparsevlm+": "rates and ranks at three decoder layers",
    "vmtc_cmai": "clusters all tokens by their pairwise distances",
    "vflowopt": "reads the attention of all patches twice, patch entropy on the pixels",
}
"""What in a method's definition costs, said where it exceeds `LIMIT`."""


@dataclass
class Row:
    """One method at one budget. Times in seconds, medians over the repeats.

    Attributes:
        patches: visual tokens of the unpruned picture.
        tokens: budget asked for, the true mean.
        mean_tokens: of the ledger, as it ran.
        stages: stage calls of one prefill.
        choosing: time in the method's stages.
        llm: the prefill without choosing and without the vision tower; None where the method works
            inside the tower.
        tower: the vision tower, unpruned.
        share: choosing over what remains, tower and LLM.
        share_quartiles: its first and third quartile.
        share_llm: choosing over what remains of the LLM's prefill.
        reason: why it was not measured; "" where it was.
    """

    method: str
    patches: int
    tokens: int
    mean_tokens: float | None = None
    stages: int = 0
    choosing: float | None = None
    llm: float | None = None
    tower: float | None = None
    share: float | None = None
    share_quartiles: tuple[float, float] | None = None
    share_llm: float | None = None
    reason: str = ""


HEAD = (
    "method", "asked", "tokens", "choosing ms", "of the rest", "quartiles", "of the LLM", "rest ms",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is printed, under `HEAD`."""
    if row.share is None or row.share_quartiles is None or row.choosing is None:
        return (row.method, str(row.tokens), "-", row.reason, *["-"] * (len(HEAD) - 4))
    low, high = row.share_quartiles
    over = " !" if row.share > LIMIT else ""
    rest = row.choosing / row.share
    return (
        row.method,
        str(row.tokens),
        f"{row.mean_tokens:.1f}",
        f"{row.choosing * 1e3:.1f}",
        f"{row.share:.1%}{over}",
        f"{low:.1%} - {high:.1%}",
        "-" if row.share_llm is None else f"{row.share_llm:.1%}",
        f"{rest * 1e3:.0f}",
    )


def over_limit(rows: list[Row], of: str = "share") -> list[str]:
    """What exceeds `LIMIT` of the rest ("share") or of the LLM's ("share_llm"), and why."""
    worst: dict[tuple[str, int], float] = {}
    for row in rows:
        share = getattr(row, of)
        if share is not None and share > LIMIT:
            key = row.method, row.patches
            worst[key] = max(worst.get(key, 0.0), share)
    return [
        f"- **{name}** at {patches} patches: up to {share:.0%}; {FORCED.get(name, 'see its file')}"
        for (name, patches), share in sorted(worst.items(), key=lambda item: (item[0][1], item[0]))
    ]


def markdown(rows: list[Row], settings: dict[str, Any], command: str) -> str:
    """The report."""
    parts = [
        "# What choosing costs, method by method\n",
        f"Time of selection over time of the prefill that remains: {settings['description']}; one "
        f"picture and {settings['text_tokens']} text tokens; median and quartiles of "
        f"{settings['repeats']} prefills, {settings['clock']} time, "
        + ", ".join(f"{key} {settings['machine'][key]}" for key in MACHINE)
        + f". *of the rest*: tower and LLM; *of the LLM*: without the tower. ! marks more than "
        f"{LIMIT:.0%}. Real decoders are wider than this one (4096, not 1024): the rest grows with "
        "the width's square, most choices with the width or not at all. What a method does beside "
        "choosing (the inhibition of vmtc_cmai within attention) is not counted. Made by "
        f"`{command}`.\n",
    ]
    for patches in sorted({row.patches for row in rows}):
        here = [row for row in rows if row.patches == patches]
        towers = [row.tower for row in here if row.tower is not None]
        parts.append(f"## {patches} patches\n")
        if towers:
            parts.append(f"The vision tower takes {statistics.median(towers) * 1e3:.0f} ms.\n")
        lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *map(cells, here)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    for title, of in (("of the rest", "share"), ("of the LLM's prefill alone", "share_llm")):
        parts.append(f"## Above {LIMIT:.0%} {title}\n")
        parts.append("\n".join(over_limit(rows, of) or ["None."]) + "\n")
    return "\n".join(parts)
