"""The result of an evaluation: rows of estimates with their intervals, and what they were measured on. As JSON and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .judged import JudgedList
from .latency import Latency


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries (or a pooled value) with its bootstrap interval; NaN where undefined.

    Attributes
    ----------
    count : how many queries define the value.
    """

    value: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: undefined is null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(x) else round(x, 6) for name, x in numbers.items()} | {"count": self.count}

    def to_text(self, *, signed: bool = False) -> str:
        """``0.806 [0.771, 0.838]``; a dash where undefined."""
        if math.isnan(self.value):
            return "–"
        sign = "+" if signed else ""
        return f"{self.value:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


@dataclass(frozen=True, slots=True)
class Row:
    """One ranker.

    Attributes
    ----------
    kind : ``baseline``, ``teacher``, ``student``, ``bundle`` or ``scorer``.
    ndcg_gain : mean of the per-query differences of nDCG to BM25, with a paired interval; None for BM25 itself.
    auc : over all pairs of the split together; auc_by_query : mean over the queries that have both classes.
    detail : identity of the model, e.g. ``model_version``.
    ndcg_by_query : float64 [Q], NaN where undefined; scores : float32 [N] for each query, None for "no rerank". Not part of the JSON.
    """

    name: str
    kind: str
    ndcg: Estimate
    ndcg_gain: Estimate | None
    mrr: Estimate
    auc: Estimate
    auc_by_query: Estimate
    latency: Latency | None = None
    detail: Mapping[str, str] = field(default_factory=dict)
    ndcg_by_query: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    scores: tuple[NDArray[np.float32], ...] | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Estimates, latency and identity; nothing by query."""
        return {
            "name": self.name,
            "kind": self.kind,
            "ndcg": self.ndcg.to_json(),
            "ndcg_gain": self.ndcg_gain.to_json() if self.ndcg_gain else None,
            "mrr": self.mrr.to_json(),
            "auc": self.auc.to_json(),
            "auc_by_query": self.auc_by_query.to_json(),
            "latency": self.latency.to_json() if self.latency else None,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True, slots=True)
class Table:
    """All rankers on one split of one data set.

    Attributes
    ----------
    k : cut-off of nDCG and MRR.
    relevant_from : lowest grade that counts as relevant in MRR and AUC.
    left_out : queries with fewer than ``min_judged`` judged candidates.
    provenance : ``data_sha256 seed samples command date machine versions``.
    lists : the judged lists themselves, in the order of ``Row.scores``. Not part of the JSON.
    """

    data: str
    split: str
    k: int
    relevant_from: float
    min_judged: int
    left_out: int
    queries: int
    pairs: int
    rows: tuple[Row, ...]
    provenance: Mapping[str, Any]
    lists: tuple[JudgedList, ...] = field(default=(), repr=False, compare=False)

    def row(self, name: str) -> Row:
        """The row of that name. Raises KeyError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}; the rows are {[row.name for row in self.rows]}")

    def to_json(self) -> dict[str, Any]:
        """Everything but texts and per-query values."""
        return {
            "format": "edgerec-evaluation",
            "version": 1,
            "data": self.data,
            "split": self.split,
            "k": self.k,
            "relevant_from": self.relevant_from,
            "min_judged": self.min_judged,
            "left_out": self.left_out,
            "queries": self.queries,
            "pairs": self.pairs,
            "rows": [row.to_json() for row in self.rows],
            "provenance": dict(self.provenance),
        }

    def to_markdown(self) -> str:
        """A table that reads well as plain text too, and two lines that say what it was measured on."""
        return f"{_aligned(self.header(), self.cells())}\n\n{self.caption()}\n"

    def header(self) -> list[str]:
        """Column titles; the latency column is there when something was timed."""
        timed = next((row.latency for row in self.rows if row.latency), None)
        columns = ["ranker", f"nDCG@{self.k}", "gain over BM25", f"MRR@{self.k}", "AUC", "AUC by query"]
        return columns + ([f"p50 ms / {timed.candidates}"] if timed else [])

    def cells(self) -> list[list[str]]:
        """The table's text, row by row, under :meth:`header`."""
        timed = any(row.latency for row in self.rows)
        lines = []
        for row in self.rows:
            gain = row.ndcg_gain.to_text(signed=True) if row.ndcg_gain else "–"
            line = [row.name, row.ndcg.to_text(), gain, row.mrr.to_text(), row.auc.to_text(), row.auc_by_query.to_text()]
            if timed:
                line.append(f"{row.latency.p50_ms:.2f}" if row.latency else "–")
            lines.append(line)
        return lines

    def caption(self) -> str:
        """Data, conventions and provenance in words."""
        p, machine = self.provenance, self.provenance["machine"]
        out = f" ({self.left_out} with fewer than {self.min_judged} left out)" if self.left_out else ""
        return (
            f"{self.data}, split {self.split}: {self.queries:,} queries{out}, {self.pairs:,} judged pairs, sha256 {p['data_sha256'][:12]}. "
            f"Relevant from grade {self.relevant_from:g}. "
            f"Brackets: 95 % bootstrap intervals over queries, {p['samples']:,} samples, seed {p['seed']}.\n"
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load_1min']}; {p['date']}; `{p['command']}`"
        )


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    safe = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in safe) for column in range(len(header))]
    lines = []
    for line in safe:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|".join("-" * (width + 2) if column == 0 else "-" * (width + 1) + ":" for column, width in enumerate(widths))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
