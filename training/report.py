"""``write_report``: an evaluation as one HTML file that can be opened anywhere, mailed and kept: no script, no network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from edgerec.metrics import rank_order

from .compare import Comparison
from .judged import JudgedList
from .plot import quality_plot
from .report_compare import comparison_section
from .table import Row, Table

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5a6270; --line: #e6e9ee; --tint: #f6f7f9; --good: #1f7a4d; --bad: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; color: var(--ink); background: #fff;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p { margin: .3rem 0 .9rem; } .soft, small { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; border-bottom-width: 2px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } td:first-child { font-weight: 600; }
td small { display: block; font-size: .8rem; }
tr.baseline td:first-child { font-weight: 400; color: var(--soft); }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
figure { margin: 1.4rem 0 0; } figure svg { width: 100%; height: auto; }
details { border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0; padding: 0 .9rem; }
summary { cursor: pointer; padding: .6rem 0; font-weight: 600; }
.loss { border-top: 1px solid var(--line); padding: .8rem 0 1rem; }
.loss header { display: flex; justify-content: space-between; gap: 1rem; font-weight: 600; margin-bottom: .4rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; } .sides ol { margin: .2rem 0 0; padding-left: 1.4rem; }
.sides li { padding: .1rem 0; overflow-wrap: anywhere; }
.grade { float: right; margin-left: .6rem; padding: 0 .45rem; border-radius: 9px; font-size: .8rem; background: var(--tint); }
.grade.high { background: #dff2e7; color: var(--good); } .grade.low { background: #fbe6e4; color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; padding: 1rem; background: var(--tint); }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; } code { font: .9em ui-monospace, Menlo, Consolas, monospace; }
@media (max-width: 40rem) { .sides { grid-template-columns: 1fr; } }
"""


def write_report(
    tables: Table | Sequence[Table],
    path: Path,
    *,
    comparison: Comparison | None = None,
    title: str = "Ranking evaluation",
    losses: int = 8,
    shown: int = 10,
) -> None:
    """Write the page, whole or not at all.

    Parameters
    ----------
    tables : one evaluation, or one for each data set.
    path : the HTML file; replaced if it exists.
    comparison : of two rankers; a part of its own after the tables.
    losses : how many queries to show where a ranker loses most nDCG against BM25; 0 leaves that part out. It is the only part that
        prints queries and item titles.
    shown : ranks shown for each of those queries.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    OSError : the file cannot be written.
    """
    page = render_report(tables, comparison=comparison, title=title, losses=losses, shown=shown)
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(page.encode("utf-8", "replace"))  # a lone surrogate in a title must not cost the report
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def render_report(
    tables: Table | Sequence[Table],
    *,
    comparison: Comparison | None = None,
    title: str = "Ranking evaluation",
    losses: int = 8,
    shown: int = 10,
) -> str:
    """The page of :func:`write_report` as text."""
    listed = [tables] if isinstance(tables, Table) else list(tables)
    sections = "\n".join(_section(table, losses, shown) for table in listed)
    if comparison:
        sections += comparison_section(comparison)
        if losses:
            a, b = (comparison.table.row(name) for name in (comparison.a, comparison.b))
            sections += f"\n<h3>Where it loses most against {escape(a.name)}</h3>\n" + _losses(comparison.table, b, losses, shown, a)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="soft">Higher is better, except for time. Small figures are 95 % bootstrap intervals over queries.</p>\n'
        f"{sections}\n</body></html>\n"
    )


def _section(table: Table, losses: int, shown: int) -> str:
    out = f" {table.left_out:,} queries with fewer than {table.min_judged} judged items are left out." if table.left_out else ""
    head = (
        f"<h2>{escape(table.data)}, split {escape(table.split)}</h2>\n<p>{table.queries:,} queries, {table.pairs:,} judged pairs; "
        f"relevant from grade {table.relevant_from:g}.{out}</p>"
    )
    parts = [head, _figures(table), f"<figure>{quality_plot(table)}</figure>"]
    if losses and any(row.kind != "baseline" for row in table.rows):
        parts.append("<h3>Where it loses most against BM25</h3>")
        parts += [_losses(table, row, losses, shown) for row in table.rows if row.kind != "baseline"]
    return "\n".join([*parts, _provenance(table)])


def _figures(table: Table) -> str:
    header = "".join(f"<th>{escape(name)}</th>" for name in table.header())
    lines = []
    for row, cells in zip(table.rows, table.cells(), strict=True):
        tone = ""
        if row.ndcg_gain and row.kind != "baseline":
            tone = "good" if row.ndcg_gain.low > 0 else "bad" if row.ndcg_gain.high < 0 else ""
        columns = [f"<td>{escape(cells[0])}</td>"]
        for place, cell in enumerate(cells[1:], 1):
            value, _, interval = cell.partition(" ")
            value = f'<span class="{tone}">{escape(value)}</span>' if place == 2 and tone else escape(value)
            columns.append(f"<td>{value}<small>{escape(interval)}</small></td>" if interval else f"<td>{value}</td>")
        lines.append(f'<tr class="{row.kind}">{"".join(columns)}</tr>')
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>'


def _losses(table: Table, row: Row, losses: int, shown: int, against: Row | None = None) -> str:
    rival = against or table.row("BM25")
    change = row.ndcg_by_query - rival.ndcg_by_query
    worst = [int(i) for i in np.argsort(change, kind="stable")[:losses] if change[i] < 0]
    worse, better = int((change < -1e-9).sum()), int((change > 1e-9).sum())
    blocks = [_loss(table, row, rival, i, shown) for i in worst]
    summary = f"{escape(row.name)}: better on {better:,} queries, worse on {worse:,}, equal on {table.queries - better - worse:,}"
    return f"<details><summary>{summary}</summary>\n{chr(10).join(blocks)}\n</details>"


def _loss(table: Table, row: Row, rival: Row, query: int, shown: int) -> str:
    judged = table.lists[query]
    sides = ""
    for side in (rival, row):
        quality = f"{escape(side.name)}, nDCG@{table.k} {side.ndcg_by_query[query]:.3f}"
        sides += f"<div><small>{quality}</small>{_top(table, judged, side, query, shown)}</div>"
    change = row.ndcg_by_query[query] - rival.ndcg_by_query[query]
    return (
        f'<div class="loss"><header><span>{escape(judged.query)}</span><span class="bad">{change:+.3f}</span></header>'
        f'<div class="sides">{sides}</div></div>'
    )


def _top(table: Table, judged: JudgedList, row: Row, query: int, shown: int) -> str:
    if row.scores is None:
        return ""
    lowest = float(judged.grades.min())
    lines = []
    for place in rank_order(row.scores[query])[:shown].tolist():
        grade = float(judged.grades[place])
        tone = "high" if grade >= table.relevant_from else "low" if grade == lowest else ""
        item = judged.items[place]
        lines.append(f'<li><span class="grade {tone}">{grade:g}</span>{escape(item.title or item.id)}</li>')
    return f"<ol>{''.join(lines)}</ol>"


def _provenance(table: Table) -> str:
    p = table.provenance
    machine = p["machine"]
    load = "unknown" if machine["load_1min"] is None else f"{machine['load_1min']:g}"
    facts = {
        "Command": f"<code>{escape(str(p['command']))}</code>",
        "Date": escape(str(p["date"])),
        "Data": f"<code>sha256 {escape(str(p['data_sha256']))}</code>",
        "Seed, resamples": f"{p['seed']}, {p['samples']:,}",
        "Machine": escape(f"{machine['processor']}, {machine['cores']} cores, load {load} before"),
        "Versions": escape(", ".join(f"{name} {version}" for name, version in p["versions"].items())),
    }
    for row in table.rows:
        if row.detail:
            facts[escape(row.name)] = escape(", ".join(f"{name} {value}" for name, value in row.detail.items()))
    return "<h3>How it was measured</h3>\n<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items()) + "</dl>"
