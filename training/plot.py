"""The evaluation as one picture: quality with its interval against the time of a request. SVG, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgerec.errors import MissingExtraError

from .table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .compare import Comparison

COLOURS = {"baseline": "#8a8f98", "teacher": "#b4540a", "student": "#1f7a4d", "bundle": "#1d5fb8", "scorer": "#7a3fa0"}
INK, SOFT = "#1c2430", "#5a6270"


def quality_plot(table: Table) -> str:
    """An inline ``<svg>``: nDCG with 95 % intervals against p50 latency, or by ranker where nothing was timed.

    Rankers without a latency (the baselines) are lines across. The same table gives the same bytes.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    """
    timed = [row for row in table.rows if row.latency]
    return draw_svg(lambda axes: _against_latency(axes, table, timed) if timed else _by_ranker(axes, table))


def calibration_plot(comparison: Comparison) -> str:
    """An inline ``<svg>``: the mean grade of each tenth of the pairs against its mean score, and what a calibrated logit would give.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    """

    def draw(axes: Axes) -> None:
        for (name, bins), colour in zip(comparison.calibration.items(), (COLOURS["bundle"], COLOURS["teacher"]), strict=True):
            axes.plot([b.score for b in bins], [b.grade for b in bins], marker="o", color=colour, label=name)
            axes.plot([b.score for b in bins], [b.predicted for b in bins], color=colour, linewidth=1, linestyle=(0, (4, 3)), alpha=0.7)
        axes.set_xlabel(
            "mean score of a tenth of the judged pairs (dashed: the grade that this score predicts, read as a logit)", color=SOFT
        )
        axes.set_ylabel("mean grade", color=SOFT)
        axes.legend(frameon=False)

    return draw_svg(draw)


def draw_svg(draw: Callable[[Axes], None]) -> str:
    """What ``draw`` puts on the axes as an ``<svg>`` in the house's looks. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib import rc_context, rcParams
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError("matplotlib", "train") from e
    with rc_context():  # the process keeps its settings
        # A ranker's name may hold a dollar sign: text is text, never mathematics. A fixed salt gives the same element ids every time.
        rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "edgerec", "text.parse_math": False, "text.color": INK, "font.size": 10.0})
        figure = Figure(figsize=(8.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c3c8d0")
        axes.tick_params(colors=SOFT, length=0)
        axes.grid(color="#e6e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
        target = io.StringIO()
        # Without a date, so that a report can be compared with the last one.
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = target.getvalue()
    return text[text.index("<svg") :]


def _against_latency(axes: Axes, table: Table, timed: list[Row]) -> None:
    from matplotlib.ticker import LogLocator

    times = sorted(row.latency.p50_ms for row in timed if row.latency)
    left, right = times[0] / 2.5, times[-1] * 2.5
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    for row in table.rows:
        estimate, label = row.ndcg, f"{row.name} {row.ndcg.value:.3f}"
        if math.isnan(estimate.value):
            continue
        if row.latency is None:
            axes.axhline(estimate.value, color=COLOURS[row.kind], linewidth=1.2, linestyle=(0, (5, 3)))
            axes.annotate(label, (right, estimate.value), (-4, 4), textcoords="offset points", ha="right", color=SOFT)
            continue
        _point(axes, row.latency.p50_ms, estimate.value, (estimate.low, estimate.high), COLOURS[row.kind], vertical=True)
        above = times.index(row.latency.p50_ms) % 2 == 0  # neighbours in time are labelled on opposite sides, so that names do not overlap
        place, shift = (estimate.high, (0, 6)) if above else (estimate.low, (0, -6))
        axes.annotate(
            label,
            (row.latency.p50_ms, place),
            shift,
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            color=COLOURS[row.kind],
            weight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
        )
    candidates = timed[0].latency.candidates if timed[0].latency else 0
    axes.set_xlabel(f"p50 milliseconds for {candidates} candidates (log scale, left is faster)", color=SOFT)
    axes.set_ylabel(f"nDCG@{table.k}", color=SOFT)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(LogLocator(subs=(1,)))
    axes.xaxis.set_minor_formatter("")
    axes.margins(y=0.18)


def _by_ranker(axes: Axes, table: Table) -> None:
    for place, row in enumerate(table.rows):
        estimate = row.ndcg
        if math.isnan(estimate.value):
            continue
        _point(axes, estimate.value, place, (estimate.low, estimate.high), COLOURS[row.kind], vertical=False)
        axes.annotate(f"{estimate.value:.3f}", (estimate.value, place), (0, 8), textcoords="offset points", ha="center", color=INK)
    axes.set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    axes.set_ylim(len(table.rows) - 0.5, -0.7)
    axes.set_xlabel(f"nDCG@{table.k}, with 95 % interval over queries", color=SOFT)


def _point(axes: Axes, x: float, y: float, span: tuple[float, float], colour: str, *, vertical: bool) -> None:
    line = ([x, x], list(span)) if vertical else (list(span), [y, y])
    axes.plot(*line, color=colour, linewidth=2.4, alpha=0.45, solid_capstyle="round")
    axes.plot([x], [y], marker="o", markersize=8, color=colour, markeredgecolor="white", markeredgewidth=1.2)
