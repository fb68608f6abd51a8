"""``edgerec evaluate``: rankers side by side on judged lists, always beside BM25 and "no rerank"."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgerec import metrics
from edgerec.errors import InputError
from edgerec.machine import describe_machine, installed_versions, utc_now
from edgerec.types import Item

from .data import load_dataset
from .first_stage import Bm25
from .judged import JudgedList, judged_lists, relevant_from
from .latency import Latency, first_stage_requests, measure_latency
from .scorers import Opened, Scorer, open_bundle, open_model, score_lists
from .table import Estimate, Row, Table

__all__ = ["Scorer", "evaluate"]

PACKAGES = ("edgerec", "numpy", "bm25s", "onnxruntime", "tokenizers", "torch", "transformers")


def evaluate(
    data: Path,
    split: str,
    *,
    models: Sequence[Path] = (),
    bundles: Sequence[Path] = (),
    scorers: Mapping[str, Scorer] | None = None,
    seed: int = 0,
    k: int = 10,
    relevant_at: float | None = None,
    min_judged: int = 2,
    samples: int = 2000,
    latency: bool = False,
    latency_candidates: int = 100,
    latency_calls: int = 30,
    command: str | None = None,
) -> Table:
    """Score every judged list of a split with every ranker.

    Parameters
    ----------
    data : data folder; split : a file in its ``qrels``.
    models : folders written by ``edgerec train`` or ``edgerec distill``; bundles : folders written by ``edgerec build-engine``.
    scorers : more rankers, by name.
    seed : of the candidates' order and of the bootstrap.
    k : cut-off of nDCG and MRR.
    relevant_at : lowest grade that MRR and AUC count as relevant; by default 0.6 of the way from the lowest to the highest grade.
    min_judged : leave out queries with fewer judged candidates. One candidate is no ranking: its nDCG is 1 whatever the ranker does.
    samples : bootstrap resamples.
    latency : also time each model and bundle on BM25's best candidates of varied queries.
    command : how the figures were made, for the provenance; by default this process's command line.

    Returns
    -------
    Table with the rows "no rerank", "BM25", then models, bundles and scorers in the order given. "no rerank" is the exact expectation over
    all orders of the judged list, because a judged list has no order of its own; its nDCG is what a ranker that knows nothing reaches.

    Raises
    ------
    InputError : unreadable data, an unknown split, two rankers of one name, or a ranker that returns no [N] scores.
    BundleError : a model folder or a bundle that cannot be opened.
    """
    if k < 1 or latency_candidates < 1 or latency_calls < 1:
        raise InputError(f"k, latency_candidates and latency_calls must be at least 1; got {k}, {latency_candidates}, {latency_calls}")
    machine = describe_machine()  # first: the load it reports should be that of others
    dataset = load_dataset(Path(data))
    lists = judged_lists(dataset, split, seed=seed, min_judged=min_judged)
    threshold = relevant_from(dataset) if relevant_at is None else relevant_at
    bm25 = Bm25(dataset)
    requests = first_stage_requests(dataset, lists, bm25, candidates=latency_candidates, calls=latency_calls, seed=seed) if latency else []
    judge = _Judge(lists, dataset.grade_min, threshold, k, seed, samples)
    baseline = judge.row("BM25", "baseline", score_lists(bm25, lists, "BM25"), None)
    rows = [judge.random_order(baseline), baseline]
    needed = {item.id: item for items in (*(judged.items for judged in lists), *(items for _, items in requests)) for item in items}
    for name, opening in _planned(models, bundles, scorers or {}, needed.values()).items():
        with opening as ranker:
            timing = measure_latency(ranker.scorer, requests) if latency else None
            scores = score_lists(ranker.scorer, lists, name)
            rows.append(judge.row(name, ranker.kind, scores, baseline, latency=timing, detail=ranker.detail))
    return Table(
        data=dataset.name,
        split=split,
        k=k,
        relevant_from=threshold,
        min_judged=min_judged,
        left_out=len(dataset.qrels[split]) - len(lists),
        queries=len(lists),
        pairs=sum(len(judged.items) for judged in lists),
        rows=tuple(rows),
        lists=tuple(lists),
        provenance={
            "data_sha256": dataset.sha256,
            "seed": seed,
            "samples": samples,
            "bm25": {"fields": list(bm25.fields), "k1": bm25.k1, "b": bm25.b, "fold_plurals": bm25.fold_plurals},
            "command": shlex.join(sys.argv) if command is None else command,
            "date": utc_now(),
            "machine": machine,
            "versions": installed_versions(PACKAGES),
        },
    )


def _planned(
    models: Sequence[Path], bundles: Sequence[Path], scorers: Mapping[str, Scorer], items: Iterable[Item]
) -> dict[str, AbstractContextManager[Opened]]:
    """Rankers by name, none opened yet: one at a time is held in memory. Folders of one name are told apart by their path."""
    folders = [Path(folder) for folder in (*models, *bundles)]
    plain = [folder.name for folder in folders]
    named = [(name if plain.count(name) == 1 else str(folder), folder) for name, folder in zip(plain, folders, strict=True)]
    planned: list[tuple[str, AbstractContextManager[Opened]]] = [(name, open_model(folder)) for name, folder in named[: len(models)]]
    planned += [(name, open_bundle(folder, items)) for name, folder in named[len(models) :]]
    planned += [(name, nullcontext(Opened("scorer", scorer))) for name, scorer in scorers.items()]
    names = ["no rerank", "BM25", *(name for name, _ in planned)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two rankers are called {name!r}; give them different names")
    return dict(planned)


class _Judge:
    """Turns the scores of one ranker into a row; everything that all rankers share is computed once."""

    def __init__(self, lists: Sequence[JudgedList], grade_min: float, threshold: float, k: int, seed: int, samples: int) -> None:
        self.k, self.seed, self.samples = k, seed, samples
        self.gains = [metrics.gain(judged.grades, grade_min) for judged in lists]
        self.relevant = [judged.grades >= threshold for judged in lists]
        self.query_index = np.repeat(np.arange(len(lists)), [len(judged.items) for judged in lists])

    def row(
        self,
        name: str,
        kind: str,
        scores: tuple[NDArray[np.float32], ...],
        baseline: Row | None,
        *,
        latency: Latency | None = None,
        detail: Mapping[str, str] | None = None,
    ) -> Row:
        ndcg = np.array([metrics.ndcg(g, s, self.k) for g, s in zip(self.gains, scores, strict=True)])
        mrr = np.array([metrics.mrr(r, s, self.k) for r, s in zip(self.relevant, scores, strict=True)])
        areas = np.array([metrics.auc(r, s) for r, s in zip(self.relevant, scores, strict=True)])
        relevant, pooled = np.concatenate(self.relevant), np.concatenate(scores)
        low, high = metrics.auc_interval(relevant, pooled, self.query_index, seed=self.seed, samples=self.samples)
        return Row(
            name=name,
            kind=kind,
            ndcg=self._mean(ndcg),
            ndcg_gain=None if baseline is None else self._mean(ndcg - baseline.ndcg_by_query),
            mrr=self._mean(mrr),
            auc=Estimate(metrics.auc(relevant, pooled), low, high, len(self.gains)),
            auc_by_query=self._mean(areas),
            latency=latency,
            detail=detail or {},
            ndcg_by_query=ndcg,
            scores=scores,
        )

    def random_order(self, baseline: Row) -> Row:
        ndcg = np.array([expected_ndcg(g, self.k) for g in self.gains])
        mrr = np.array([_expected_mrr(r, self.k) for r in self.relevant])
        half = [0.5 if 0 < r.sum() < len(r) else math.nan for r in self.relevant]
        pooled = np.concatenate(self.relevant)
        coin = 0.5 if 0 < pooled.sum() < len(pooled) else math.nan
        return Row(
            name="no rerank",
            kind="baseline",
            ndcg=self._mean(ndcg),
            ndcg_gain=self._mean(ndcg - baseline.ndcg_by_query),
            mrr=self._mean(mrr),
            auc=Estimate(coin, coin, coin, len(self.gains)),
            auc_by_query=self._mean(np.array(half)),
            ndcg_by_query=ndcg,
        )

    def _mean(self, values: NDArray[np.float64]) -> Estimate:
        defined = values[~np.isnan(values)]
        low, high = metrics.bootstrap_interval(values, seed=self.seed, samples=self.samples)
        return Estimate(float(defined.mean()) if len(defined) else math.nan, low, high, len(defined))


def expected_ndcg(gains: NDArray[np.float64], k: int) -> float:
    """nDCG averaged over every order: each rank holds the mean gain."""
    discounts = 1.0 / np.log2(np.arange(2, min(k, len(gains)) + 2))
    ideal = float(np.sort(gains)[::-1][:k] @ discounts)
    return float(gains.mean() * discounts.sum()) / ideal if ideal > 0 else math.nan


def _expected_mrr(relevant: NDArray[np.bool_], k: int) -> float:
    """MRR averaged over every order: ranks are drawn without replacement until the first relevant candidate."""
    found, left, none_yet, total = int(relevant.sum()), len(relevant), 1.0, 0.0
    if not found:
        return math.nan
    for rank in range(1, min(k, len(relevant)) + 1):
        total += none_yet * found / left / rank
        none_yet *= 1 - found / left
        left -= 1
    return total
