"""Quality over folds: every query is judged by the model of the fold that did not train on it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgerec.training.data import load_dataset
from edgerec.training.evaluate import expected_ndcg
from edgerec.training.folder import new_folder, write_qrels
from edgerec.training.folds import write_folds
from edgerec.training.judged import judged_lists, relevant_from
from edgerec.training.scorers import Scorer, score_lists
from numpy.typing import NDArray

from edgerec.metrics import auc, bootstrap_interval, gain, ndcg


@dataclass(frozen=True, slots=True)
class Outcome:
    """One ranker over all folds: nDCG@10 of every query in the order of their ids (float64 [Q], NaN where undefined), and AUC of every fold
    (float64 [folds])."""

    ndcg: NDArray[np.float64]
    auc: NDArray[np.float64]

    def difference(self, other: Outcome) -> tuple[float, float, float]:
        """Mean of this nDCG less the other's, query by query, with its 95 % interval."""
        change = self.ndcg - other.ndcg
        low, high = bootstrap_interval(change, seed=0, samples=2000)
        return float(np.nanmean(change)), float(low), float(high)

    def retention(self, teacher: Outcome, random: NDArray[np.float64]) -> tuple[float, float, float]:
        """(this - random order) / (teacher - random order), means over queries, with its 95 % interval: queries are resampled, and both
        rankers judged on the same ones. ``random`` is :func:`random_order`'s."""
        kept, whole = self.ndcg - random, teacher.ndcg - random
        defined = np.flatnonzero(np.isfinite(kept + whole))
        drawn = defined[np.random.default_rng(0).integers(0, len(defined), (2000, len(defined)))]
        low, high = np.percentile(kept[drawn].mean(axis=1) / whole[drawn].mean(axis=1), [2.5, 97.5])
        return float(kept[defined].mean() / whole[defined].mean()), float(low), float(high)

    @staticmethod
    def mean(outcomes: Sequence[Outcome]) -> Outcome:
        """Of several runs over the same queries: each query's mean, and each fold's."""
        return Outcome(np.mean([one.ndcg for one in outcomes], axis=0), np.mean([one.auc for one in outcomes], axis=0))


def open_folds(data: Path, work: Path, count: int, seed: int) -> list[Path]:
    """The data folders of the folds, written once."""
    folder = work / f"folds-{count}-{seed}"
    return [folder / str(i) for i in range(count)] if folder.exists() else write_folds(data, folder, count=count, seed=seed)


def fewer(fold: Path, times: int, seed: int) -> Path:
    """The fold with one in ``times`` of its training queries, drawn at random, written once beside it."""
    out = fold.with_name(f"{fold.name}-one-in-{times}")
    if not out.exists():
        with new_folder(out) as staging:
            for path in fold.iterdir():
                if path.is_file():
                    shutil.copy(path, staging)
            qrels = load_dataset(fold).qrels
            drawn = np.random.default_rng(seed).permutation(list(qrels["train"]))[::times].tolist()
            chosen = {"train": drawn, "dev": list(qrels["dev"])}
            write_qrels(staging, {split: [(q, i, g) for q in names for i, g in qrels[split][q].items()] for split, names in chosen.items()})
    return out


def judge(folds: Sequence[Path], scorers: Sequence[Scorer], *, min_judged: int = 2) -> Outcome:
    """What the scorer of each fold makes of the fold's dev queries."""
    quality: dict[str, float] = {}
    areas: list[float] = []
    for fold, scorer in zip(folds, scorers, strict=True):
        dataset = load_dataset(fold)
        lists = judged_lists(dataset, "dev", min_judged=min_judged)
        scores = score_lists(scorer, lists)
        quality |= {one.query_id: ndcg(gain(one.grades, dataset.grade_min), s, 10) for one, s in zip(lists, scores, strict=True)}
        areas.append(auc(np.concatenate([one.grades for one in lists]) >= relevant_from(dataset), np.concatenate(scores)))
    return Outcome(np.array([quality[query] for query in sorted(quality)]), np.array(areas))


def random_order(folds: Sequence[Path], *, min_judged: int = 2) -> NDArray[np.float64]:
    """Each query's mean nDCG@10 over all orders of its list, float64 [Q] as in :class:`Outcome`: what ranking without knowledge reaches."""
    found: dict[str, float] = {}
    for fold in folds:
        dataset = load_dataset(fold)
        lists = judged_lists(dataset, "dev", min_judged=min_judged)
        found |= {one.query_id: expected_ndcg(gain(one.grades, dataset.grade_min), 10) for one in lists}
    return np.array([found[query] for query in sorted(found)])


def row(name: str, one: Outcome, plain: Outcome | None) -> dict[str, Any]:
    """A report's row: means, and the paired difference to another ranker."""
    out: dict[str, Any] = {"name": name, "ndcg": float(np.nanmean(one.ndcg)), "auc": float(one.auc.mean())}
    if plain is not None and plain is not one:
        out["ndcg_difference"] = one.difference(plain)
        out["auc_difference"] = float((one.auc - plain.auc).mean())
    return out
