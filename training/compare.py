"""Two rankers on the same judged lists: is the difference real, where does it come from, which queries lose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerec import metrics
from edgerec.errors import InputError

from .data import Dataset
from .slices import candidate_slices, query_slices
from .table import Estimate, Row, Table

Floats = NDArray[np.float64]
SHOWN = 10
BINS = 10


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of the queries (or, for ``candidates``, of the judged pairs): nDCG of A and B, and the paired difference B - A."""

    name: str
    queries: int
    pairs: int
    ndcg_a: float
    ndcg_b: float
    difference: Estimate
    auc_a: float
    auc_b: float

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: undefined is null."""
        values = {name: getattr(self, name) for name in ("name", "queries", "pairs", "ndcg_a", "ndcg_b", "auc_a", "auc_b")}
        return {**{k: _plain(v) for k, v in values.items()}, "difference": self.difference.to_json()}


@dataclass(frozen=True, slots=True)
class Bin:
    """A tenth of the judged pairs, by score: mean score and mean grade."""

    pairs: int
    score: float
    grade: float
    predicted: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {name: round(getattr(self, name), 6) for name in ("pairs", "score", "grade", "predicted")}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ranker B against ranker A.

    Attributes
    ----------
    difference : mean of nDCG(B) - nDCG(A) by query, with its paired bootstrap interval.
    p_value : of the randomisation test: how often chance alone gives a difference this large.
    wins, losses, ties : queries where B is better, worse, the same.
    slices : all queries; by length, rarity, unseen brand, typo; then lists cut to candidates that training did or did not see.
    calibration : ranker -> its bins; calibration_error : mean distance of predicted and actual grade, as a share of the grade range.
    table : the whole evaluation, in which both are rows.
    """

    a: str
    b: str
    difference: Estimate
    p_value: float
    wins: int
    losses: int
    ties: int
    slices: tuple[Slice, ...]
    calibration: Mapping[str, tuple[Bin, ...]]
    calibration_error: Mapping[str, float]
    table: Table

    def to_json(self) -> dict[str, Any]:
        """Figures, and by query the two nDCG; the worst losses with their texts. The table is not part of it."""
        a, b = self.table.row(self.a), self.table.row(self.b)
        change = b.ndcg_by_query - a.ndcg_by_query
        order = [int(i) for i in np.argsort(change, kind="stable") if not math.isnan(change[i])]
        return {
            "format": "edgerec-comparison",
            "version": 1,
            "a": self.a,
            "b": self.b,
            "difference": self.difference.to_json(),
            "p_value": _plain(self.p_value),
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "slices": [part.to_json() for part in self.slices],
            "calibration": {name: [part.to_json() for part in bins] for name, bins in self.calibration.items()},
            "calibration_error": {name: _plain(error) for name, error in self.calibration_error.items()},
            "queries": [
                {"id": self.table.lists[i].query_id, "a": round(float(a.ndcg_by_query[i]), 6), "b": round(float(b.ndcg_by_query[i]), 6)}
                for i in order
            ],
            "worst": [self._loss(i, a, b) for i in order[:SHOWN] if change[i] < 0],
        }

    def to_markdown(self) -> str:
        """The result in a few lines, and the slices as a table."""
        head = (
            f"{self.b} against {self.a}: nDCG@{self.table.k} {self.difference.to_text(signed=True)}, p = {self.p_value:.4f}; "
            f"better on {self.wins:,} queries, worse on {self.losses:,}, equal on {self.ties:,}\n"
        )
        lines = [f"\n| slice | queries | pairs | {self.a} | {self.b} | difference |", "|---|---:|---:|---:|---:|---:|"]
        for part in self.slices:
            figures = ("–" if math.isnan(x) else f"{x:.3f}" for x in (part.ndcg_a, part.ndcg_b))
            cells = [part.name, f"{part.queries:,}", f"{part.pairs:,}", *figures, part.difference.to_text(signed=True)]
            lines.append(f"| {' | '.join(cells)} |")
        return head + "\n".join(lines) + "\n"

    def _loss(self, query: int, a: Row, b: Row) -> dict[str, Any]:
        judged = self.table.lists[query]
        sides = {}
        for side, row in (("a", a), ("b", b)):
            assert row.scores is not None
            places = metrics.rank_order(row.scores[query])[:SHOWN].tolist()
            sides[side] = [{"id": judged.items[i].id, "title": judged.items[i].title, "grade": float(judged.grades[i])} for i in places]
        return {
            "id": judged.query_id,
            "query": judged.query,
            "change": round(float((b.ndcg_by_query - a.ndcg_by_query)[query]), 6),
            **sides,
        }


def compare(table: Table, a: str, b: str, dataset: Dataset, *, seed: int = 0, samples: int = 2000) -> Comparison:
    """Compare two rows of an evaluation.

    Parameters
    ----------
    dataset : what the table was made on; its ``train`` split tells what a model has seen.

    Raises
    ------
    InputError : no such row, one without scores, or both the same.
    """
    for name in (a, b):
        if name not in [row.name for row in table.rows if row.scores is not None]:
            raise InputError(f"{name!r} is no ranker of this table; it has {[row.name for row in table.rows]}")
    if a == b:
        raise InputError(f"both rankers are {a!r}; name two")
    first, second = table.row(a), table.row(b)
    change = second.ndcg_by_query - first.ndcg_by_query
    judge = _Slicer(table, first, second, dataset, seed, samples)
    everything = np.ones(len(table.lists), bool)
    parts = [judge.of_queries(name, chosen) for name, chosen in {"all": everything, **query_slices(table.lists, dataset)}.items()]
    parts += [judge.of_candidates(name, chosen) for name, chosen in candidate_slices(table.lists, dataset).items()]
    bins = {row.name: calibration(row, table, dataset) for row in (first, second)}
    spread = dataset.grade_max - dataset.grade_min
    return Comparison(
        a=a,
        b=b,
        difference=judge.mean(change),
        p_value=randomisation_test(change, seed=seed, samples=samples),
        wins=int((change > 1e-9).sum()),
        losses=int((change < -1e-9).sum()),
        ties=int((np.abs(change) <= 1e-9).sum()),
        slices=tuple(parts),
        calibration=bins,
        calibration_error={
            name: sum(part.pairs * abs(part.predicted - part.grade) for part in found) / sum(part.pairs for part in found) / spread
            for name, found in bins.items()
        },
        table=table,
    )


def randomisation_test(differences: Floats, *, seed: int, samples: int = 2000) -> float:
    """Two-sided p value of a mean of paired differences: each keeps or changes its sign by the toss of a coin. NaN is left out.

    Source: Smucker, Allan and Carterette, A comparison of statistical significance tests for IR evaluation, CIKM 2007.
    """
    values = differences[~np.isnan(differences)]
    if not len(values):
        return math.nan
    rng = np.random.default_rng(seed)
    observed = abs(values.mean())
    beyond = sum(abs(float((values * rng.choice((-1.0, 1.0), len(values))).mean())) >= observed - 1e-12 for _ in range(samples))
    return float((beyond + 1) / (samples + 1))


def calibration(row: Row, table: Table, dataset: Dataset) -> tuple[Bin, ...]:
    """Tenths of all judged pairs by score. ``predicted`` reads the score as the logit of the label, which it is after training by bce."""
    assert row.scores is not None
    scores, grades = np.concatenate(row.scores).astype(np.float64), np.concatenate([one.grades for one in table.lists])
    known = np.isfinite(scores)
    scores, grades = scores[known], grades[known]
    labels = 1 / (1 + np.exp(-np.clip(scores, -50, 50)))
    predicted = dataset.grade_min + labels * (dataset.grade_max - dataset.grade_min)
    parts = np.array_split(np.argsort(scores, kind="stable"), min(BINS, max(1, len(scores))))
    return tuple(Bin(len(p), float(scores[p].mean()), float(grades[p].mean()), float(predicted[p].mean())) for p in parts if len(p))


class _Slicer:
    """Judges both rankers on part of the lists."""

    def __init__(self, table: Table, a: Row, b: Row, dataset: Dataset, seed: int, samples: int) -> None:
        self._table, self._rows, self._low, self._seed, self._samples = table, (a, b), dataset.grade_min, seed, samples

    def of_queries(self, name: str, chosen: NDArray[np.bool_]) -> Slice:
        return self.of_candidates(name, [np.full(len(one.items), keep) for one, keep in zip(self._table.lists, chosen, strict=True)])

    def of_candidates(self, name: str, chosen: list[NDArray[np.bool_]]) -> Slice:
        """Each list cut to its chosen candidates; lists of fewer than two are left out."""
        used = [i for i, keep in enumerate(chosen) if keep.sum() > 1]
        grades = [self._table.lists[i].grades[chosen[i]] for i in used]
        ndcgs, areas = [], []
        for row in self._rows:
            assert row.scores is not None
            scores = [row.scores[i][chosen[i]] for i in used]
            gains = [metrics.gain(g, self._low) for g in grades]
            ndcgs.append(np.array([metrics.ndcg(g, s, self._table.k) for g, s in zip(gains, scores, strict=True)]))
            pooled = np.concatenate([np.zeros(0), *grades]) >= self._table.relevant_from
            areas.append(metrics.auc(pooled, np.concatenate([np.zeros(0), *scores])))
        a, b = (float(np.nanmean(x)) if len(x) and not np.isnan(x).all() else math.nan for x in ndcgs)
        return Slice(name, len(used), sum(map(len, grades)), a, b, self.mean(ndcgs[1] - ndcgs[0]), *areas)

    def mean(self, values: Floats) -> Estimate:
        known = values[~np.isnan(values)]
        low, high = metrics.bootstrap_interval(values, seed=self._seed, samples=self._samples)
        return Estimate(float(known.mean()) if len(known) else math.nan, low, high, len(known))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else round(value, 6) if isinstance(value, float) else value
