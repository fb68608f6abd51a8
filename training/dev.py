"""Dev metrics during training: nDCG@10 and AUC by data set, the one figure that chooses a checkpoint, and BM25's beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgerec.metrics import auc, gain, ndcg

from .data import Dataset
from .first_stage import Bm25
from .judged import RELEVANT_LABEL, judged_lists
from .pairs import Pairs


def dev_metrics(pairs: Pairs, scores: NDArray[np.float32]) -> dict[str, float]:
    """``ndcg@10/NAME``, ``auc/NAME`` and ``objective``: the mean of both over all data sets.

    nDCG saturates on short judged lists and is noisy on few queries; AUC over all pairs steadies the choice.
    """
    metrics: dict[str, float] = {}
    for number, name in enumerate(pairs.names):
        rows = np.flatnonzero((pairs.dataset == number) & ~np.isnan(pairs.label))
        if len(rows) == 0:
            continue
        gains = gain(pairs.grade[rows], pairs.grade_min[number])
        per_query = [
            ndcg(gains[pairs.query[rows] == q], scores[rows][pairs.query[rows] == q], 10)
            for q in np.unique(pairs.query[rows])
            if gains[pairs.query[rows] == q].max() > 0
        ]
        relevant = pairs.label[rows] >= RELEVANT_LABEL
        if per_query:
            metrics[f"ndcg@10/{name}"] = float(np.mean(per_query))
        if 0 < relevant.sum() < len(rows):
            metrics[f"auc/{name}"] = float(auc(relevant, scores[rows]))
    metrics["objective"] = float(np.mean(list(metrics.values()))) if metrics else float("-inf")
    return metrics


def first_stage_metrics(datasets: Sequence[Dataset]) -> dict[str, float]:
    """BM25's ``ndcg@10/NAME`` on the dev splits, as `edgerec evaluate` has it: a model below it makes rankings worse."""
    found: dict[str, float] = {}
    for dataset in datasets:
        if not dataset.qrels.get("dev"):
            continue
        lists, bm25 = judged_lists(dataset, "dev"), Bm25(dataset)
        per_query = [ndcg(gain(one.grades, dataset.grade_min), bm25.score(one.query, one.items), 10) for one in lists]
        if not np.isnan(per_query).all():
            found[f"ndcg@10/{dataset.name}"] = float(np.nanmean(per_query))
    return found
