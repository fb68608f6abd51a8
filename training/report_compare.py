"""The part of the HTML report that compares two rankers."""

from __future__ import annotations

import math
from html import escape

from .compare import Comparison
from .plot import calibration_plot


def comparison_section(comparison: Comparison) -> str:
    """Verdict, slices, calibration, as HTML."""
    c, low, high = comparison, comparison.difference.low, comparison.difference.high
    tone = "good" if low > 0 else "bad" if high < 0 else ""
    verdict = (
        f'<p><span class="{tone}">{c.difference.value:+.3f}</span> nDCG@{c.table.k} [{low:+.3f}, {high:+.3f}] by paired bootstrap; '
        f"randomisation test p = {c.p_value:.4f}. Better on {c.wins:,} queries, worse on {c.losses:,}, equal on {c.ties:,}.</p>"
    )
    slices = [
        [
            part.name,
            f"{part.queries:,}",
            f"{part.pairs:,}",
            *map(_figure, (part.ndcg_a, part.ndcg_b)),
            part.difference.to_text(signed=True),
            *map(_figure, (part.auc_a, part.auc_b)),
        ]
        for part in c.slices
    ]
    header = ["slice", "queries", "pairs", f"nDCG {c.a}", f"nDCG {c.b}", "difference", f"AUC {c.a}", f"AUC {c.b}"]
    bins = [
        [name, str(number), f"{part.pairs:,}", f"{part.score:.3f}", f"{part.predicted:.3f}", f"{part.grade:.3f}"]
        for name, found in c.calibration.items()
        for number, part in enumerate(found, 1)
    ]
    errors = ", ".join(f"{escape(name)} {error:.3f}" for name, error in c.calibration_error.items())
    return "\n".join(
        [
            f"<h2>{escape(c.b)} against {escape(c.a)}</h2>",
            verdict,
            "<h3>Slices</h3>",
            _table(header, slices),
            "<h3>Scores against grades</h3>",
            "<p>Tenths of all judged pairs by score. The dashed line is what a calibrated logit predicts; mean distance from it, as a "
            f"share of the grade range: {errors}. A ranker whose score is no logit need not be near it.</p>",
            f"<figure>{calibration_plot(c)}</figure>",
            f"<details><summary>The same as a table</summary>{_table(['ranker', 'tenth', 'pairs', 'score', 'predicted', 'grade'], bins)}"
            "</details>",
        ]
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
