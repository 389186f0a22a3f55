"""What the page shows beside its widgets: counts in a table, and the panels of a drawing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image

from llava.serve.asking import by_layer
from visiondrop.draw import Panel
from visiondrop.streaming import Stream
from visiondrop.trace import SampleTrace

__all__ = ["CSS", "comparison", "legend", "message", "panel_grid"]

# Shades as in `visiondrop.draw_patches`, with a word each: they are told apart without colour.
CSS = """
.vd-message {padding: 10px 14px; border-left: 4px solid #3f6ea8; background: #eef3f9;
  color: #16202c; border-radius: 4px; font-size: 15px; line-height: 1.4; overflow-wrap: anywhere}
.vd-message.vd-error {border-left-color: #a33; background: #fbecec}
.vd-panels {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 150px), 1fr));
  gap: 14px; align-items: end}
.vd-panels.vd-wide {grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr))}
.vd-panels figure {margin: 0; max-width: 640px}
.vd-panels img {width: 100%; height: auto; display: block; border: 1px solid #8886; margin: 0;
  background: white}
.vd-panels figcaption {font-size: 14px; line-height: 1.35; margin-bottom: 4px; font-weight: 600;
  color: var(--body-text-color)}
.vd-legend {display: flex; flex-wrap: wrap; gap: 6px 22px; font-size: 14px; margin: 12px 0 2px;
  color: var(--body-text-color)}
.vd-legend span {display: inline-flex; align-items: center; gap: 7px}
.vd-legend i {width: 17px; height: 17px; border: 1px solid #555; display: inline-block; flex: none}
.vd-scroll {overflow-x: auto}
.vd-table {border-collapse: collapse; width: 100%; font-size: 15px; margin: 0 !important;
  border: 0 !important; color: var(--body-text-color)}
.vd-table tr {border: 0 !important}
.vd-table th, .vd-table td {text-align: left; vertical-align: top; border: 0 !important;
  padding: 7px 14px 7px 0 !important; border-bottom: 1px solid #8884 !important}
.vd-table thead th {border-bottom: 2px solid #888a !important}
.vd-table th:first-child {font-weight: 400}
.vd-table td {font-variant-numeric: tabular-nums}
.vd-table .vd-run {white-space: nowrap; display: inline-block; margin-right: 12px}
#told, #table, #drawing {padding: 0 !important}
#told .html-container, #table .html-container, #drawing .html-container {padding: 0 !important}
#examples-label {margin-bottom: -8px}
"""

SHADES = (
    ("kept", "background: linear-gradient(135deg, #9cc4e8 50%, #5b8fbf 50%)"),
    (
        "contextual token: others were merged into it",
        "background: linear-gradient(135deg, #9cc4e8 50%, #5b8fbf 50%); border: 3px solid #d65e00",
    ),
    ("merged into a contextual token (pale)", "background: #e4e4e4"),
    ("dropped (dark)", "background: #141414"),
)


def message(text: str, error: bool = False) -> str:
    """A line about what happens, or why it cannot."""
    kind = "vd-message vd-error" if error else "vd-message"
    role = "alert" if error else "status"
    return f'<div class="{kind}" role="{role}">{escape(text)}</div>'


def legend() -> str:
    """What the shades of the panels mean."""
    entries = "".join(f'<span><i style="{style}"></i>{text}</span>' for text, style in SHADES)
    return f'<div class="vd-legend">{entries}</div>'


def panel_grid(panels: Sequence[Panel], wide: bool = False) -> str:
    """The panels side by side, as many in a row as there is room for, and the legend."""
    figures = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<img src="{data_url(panel)}" alt="{escape(title, quote=True)}"></figure>'
        for panel, title in panels
    )
    kind = "vd-panels vd-wide" if wide else "vd-panels"
    return f'<div class="{kind}">{figures}</div>{legend()}'


def data_url(image: Image.Image) -> str:
    """The picture as part of the page, so that nothing is fetched from anywhere."""
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def comparison(full: Stream, reduced: Stream | None, name: str) -> str:
    """Tokens, bytes and milliseconds of both models in a table."""
    sides = [full] if reduced is None else [full, reduced]
    samples = [stream.trace.samples[0] for stream in sides if stream.trace is not None]
    rows = [
        ("visual tokens, mean over the layers", [f"{s.mean_tokens:.4g}" for s in samples]),
        ("by decoder layer", [runs(by_layer(s)) for s in samples]),
        ("KV cache of the prompt", [megabytes(s.kv_bytes) for s in samples]),
        ("first token after", [milliseconds(s.first_token) for s in sides]),
        ("whole answer after", [f"{milliseconds(s.seconds)}, {count(s.tokens)}" for s in sides]),
    ]
    if len(samples) == 2:
        for row, values in ((0, [s.mean_tokens for s in samples]), (2, kv_of(samples))):
            rows[row][1][1] += f" ({100 * values[1] / values[0]:.1f} % of full)"
    heads = "".join(
        f"<th>{escape(head)}</th>" for head in ["", "full model", name][: 1 + len(sides)]
    )
    body = "".join(
        f"<tr><th>{label}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        for label, values in rows
    )
    return (
        f'<div class="vd-scroll"><table class="vd-table"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def runs(layers: str) -> str:
    """Counts by run of layers, each of which is not broken over lines."""
    parts = [part.strip().removeprefix("layers ") for part in layers.split(",")]
    return "".join(f'<span class="vd-run">{escape(part)}</span>' for part in parts)


def kv_of(samples: Sequence[SampleTrace]) -> list[float]:
    """KV bytes of each."""
    return [float(sample.kv_bytes) for sample in samples]


def megabytes(size: int) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:.2f} MB"


def milliseconds(seconds: float | None) -> str:
    """Seconds in whole ms."""
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"


def count(tokens: int) -> str:
    """New tokens in words."""
    return "1 new token" if tokens == 1 else f"{tokens} new tokens"
