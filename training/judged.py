"""Judged lists: the candidates that people graded for each query, in an order that says nothing about the grades."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerec.errors import InputError
from edgerec.types import Item

from .data import Dataset

RELEVANT_LABEL = 0.6
"""MRR and AUC need a yes or no: a grade counts as relevant from ``min + 0.6 (max - min)`` on: 2.8 of 1-4, 2.2 of 1-3, 1.8 of 0-3."""


@dataclass(frozen=True, slots=True)
class JudgedList:
    """One query and its judged candidates.

    Attributes
    ----------
    items : N candidates, in a seeded random order.
    grades : float64 [N]
    """

    query_id: str
    query: str
    items: tuple[Item, ...]
    grades: NDArray[np.float64]


def relevant_from(dataset: Dataset) -> float:
    """The lowest grade that counts as relevant by default; see :data:`RELEVANT_LABEL`."""
    return dataset.grade_min + RELEVANT_LABEL * (dataset.grade_max - dataset.grade_min)


def judged_lists(dataset: Dataset, split: str, *, seed: int = 0, min_judged: int = 1) -> list[JudgedList]:
    """The judged lists of a split, queries in file order.

    Candidates are shuffled with the seed, once for all rankers. Files tend to list them by id or by grade, and every tie (BM25 gives many)
    would be broken by that order.

    Parameters
    ----------
    min_judged : leave out queries with fewer judged candidates.

    Raises
    ------
    InputError : the split does not exist, or no query is left.
    """
    if split not in dataset.qrels:
        raise InputError(f"{dataset.name} has no split {split!r}; it has {sorted(dataset.qrels)}")
    rng = np.random.default_rng(seed)
    lists = []
    for query_id, judged in dataset.qrels[split].items():
        order = rng.permutation(len(judged)).tolist()  # drawn for short lists too: min_judged must not change the order of the others
        if len(judged) < min_judged:
            continue
        ids, grades = list(judged), list(judged.values())
        lists.append(
            JudgedList(
                query_id,
                dataset.queries[query_id],
                tuple(dataset.items[ids[i]] for i in order),
                np.array([grades[i] for i in order], np.float64),
            )
        )
    if not lists:
        raise InputError(f"{dataset.name}, split {split!r}: no query has {min_judged} judged candidates or more")
    return lists
