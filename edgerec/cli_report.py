"""The evaluation as one HTML page: the table, a plot of quality and latency, provenance. No script, no style sheet, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; background: #fff; }
h1 { font-size: 1.4rem; } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d5dae1; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .ci { color: #66707d; } p { color: #66707d; } code { overflow-wrap: anywhere; }
svg text { font: 13px system-ui, sans-serif; fill: #1c2430; } .axis, .grid { stroke: #d5dae1; } .mark { fill: #1f6feb; stroke: #1f6feb; }
.base { fill: #8a94a1; stroke: #8a94a1; }
"""

_NAMES, _PANEL, _GAP, _ROW, _TOP = 190, 380, 60, 34, 30
_WIDTH = _NAMES + 2 * _PANEL + _GAP + 70


def render(table: Mapping[str, Any]) -> str:
    """The page of ``Table.to_json()``."""
    rows: list[Mapping[str, Any]] = table["rows"]
    made = table["provenance"]
    machine = made["machine"]
    out = f", {table['left_out']} with fewer than {table['min_judged']} judged items left out" if table["left_out"] else ""
    title = f"{table['data']}, split {table['split']}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{table["queries"]:,} queries{out}; {table["pairs"]:,} judged pairs. MRR and AUC: relevant from grade {table["relevant_from"]:g}.
Brackets and whiskers: 95 % bootstrap intervals over queries ({made["samples"]:,} samples, seed {made["seed"]}).</p>
{_table(rows, table["k"])}
{_plot(rows, table["k"])}
<p>{escape(str(machine["processor"]))}, {machine["cores"]} cores, load {machine["load_1min"]}; {escape(made["date"])}<br>
data sha256 <code>{made["data_sha256"]}</code><br><code>{escape(made["command"])}</code></p>
</body></html>
"""


def _table(rows: Sequence[Mapping[str, Any]], k: int) -> str:
    timed = next((row["latency"] for row in rows if row["latency"]), None)
    head = ["ranker", f"nDCG@{k}", "gain over BM25", f"MRR@{k}", "AUC"]
    if timed:
        head += [f"p50 ms, {timed['candidates']} candidates", "p95 ms"]
    body = []
    for row in rows:
        cells = [escape(row["name"]), _cell(row["ndcg"]), _cell(row["ndcg_gain"], signed=True), _cell(row["mrr"]), _cell(row["auc"])]
        if timed:
            cells += [f"{row['latency'][key]:.2f}" if row["latency"] else "–" for key in ("p50_ms", "p95_ms")]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _cell(estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    sign = "+" if signed else ""
    value, low, high = (f"{estimate[key]:{sign}.3f}" if estimate[key] is not None else "–" for key in ("value", "low", "high"))
    return f'{value} <span class="ci">[{low}, {high}]</span>'


def _plot(rows: Sequence[Mapping[str, Any]], k: int) -> str:
    """Left: nDCG with whiskers. Right: p50 latency on a logarithmic axis, where something was timed."""
    bottom = _TOP + _ROW * len(rows)
    parts = [_quality(rows, k, bottom)]
    if any(row["latency"] for row in rows):
        parts.append(_latency(rows, bottom))
    for place, row in enumerate(rows):
        parts.append(f'<text x="0" y="{_middle(place) + 4}">{escape(row["name"])}</text>')
    size = f'width="{_WIDTH}" height="{bottom + 30}" viewBox="0 0 {_WIDTH} {bottom + 30}"'
    return f'<svg {size} role="img" aria-label="nDCG and latency by ranker">{"".join(parts)}</svg>'


def _quality(rows: Sequence[Mapping[str, Any]], k: int, bottom: int) -> str:
    known = [row["ndcg"][key] for row in rows for key in ("low", "value", "high") if row["ndcg"][key] is not None]
    if not known:
        return ""
    low, high = math.floor(min(known) * 20) / 20, math.ceil(max(known) * 20) / 20
    span = max(high - low, 0.05)

    def at(value: float) -> float:
        return _NAMES + (value - low) / span * _PANEL

    ticks = [low + span * step / 5 for step in range(6)]
    parts = [f'<text x="{_NAMES}" y="14">nDCG@{k}</text>', *(_tick(at(tick), f"{tick:.2f}", bottom) for tick in ticks)]
    for place, row in enumerate(rows):
        estimate, y = row["ndcg"], _middle(place)
        style = "base" if row["kind"] == "baseline" else "mark"
        if estimate["low"] is not None and estimate["high"] is not None:
            parts.append(
                f'<line class="{style}" stroke-width="2" x1="{at(estimate["low"]):.1f}" x2="{at(estimate["high"]):.1f}" y1="{y}" y2="{y}"/>'
            )
        if estimate["value"] is not None:
            parts.append(f'<circle class="{style}" cx="{at(estimate["value"]):.1f}" cy="{y}" r="5"/>')
    return "".join(parts)


def _latency(rows: Sequence[Mapping[str, Any]], bottom: int) -> str:
    times = [row["latency"]["p50_ms"] for row in rows if row["latency"]]
    first, last = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    last = max(last, first + 1)
    left = _NAMES + _PANEL + _GAP

    def at(value: float) -> float:
        return left + (math.log10(value) - first) / (last - first) * _PANEL

    ticks = (10.0**power for power in range(first, last + 1))
    parts = [f'<text x="{left}" y="14">p50 ms (log scale)</text>', *(_tick(at(tick), f"{tick:g}", bottom) for tick in ticks)]
    for place, row in enumerate(rows):
        if row["latency"]:
            value, y = row["latency"]["p50_ms"], _middle(place)
            parts.append(f'<rect class="mark" x="{left}" y="{y - 6}" width="{max(at(value) - left, 1):.1f}" height="12"/>')
            parts.append(f'<text x="{at(value) + 6:.1f}" y="{y + 4}">{value:.2f}</text>')
    return "".join(parts)


def _tick(x: float, label: str, bottom: int) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom}"/>'
        f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>'
    )


def _middle(place: int) -> int:
    return _TOP + _ROW * place + _ROW // 2
