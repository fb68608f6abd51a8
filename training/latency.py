"""How long a scorer takes for one realistic request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerec.types import Item

from .data import Dataset
from .first_stage import Bm25
from .judged import JudgedList
from .scorers import Scorer

Request = tuple[str, tuple[Item, ...]]
"""A query and its candidates."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one call that scores ``candidates`` items, in milliseconds, over ``calls`` warm calls with varied queries."""

    p50_ms: float
    p95_ms: float
    candidates: int
    calls: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"p50_ms": round(self.p50_ms, 4), "p95_ms": round(self.p95_ms, 4), "candidates": self.candidates, "calls": self.calls}


def first_stage_requests(
    dataset: Dataset, lists: Sequence[JudgedList], bm25: Bm25, *, candidates: int, calls: int, seed: int
) -> list[Request]:
    """Realistic requests: queries of the split, each with BM25's best items, filled up with random ones where too few match."""
    rng = np.random.default_rng(seed)
    size, everything = min(candidates, len(dataset.items)), list(dataset.items)
    chosen = rng.permutation(len(lists))[:calls] if len(lists) >= calls else rng.integers(0, len(lists), calls)
    requests = []
    for query in (lists[i].query for i in chosen.tolist()):
        found = dict.fromkeys(item_id for item_id, _ in bm25.search(query, size))
        if len(found) < size:
            others = [item_id for item_id in everything if item_id not in found]
            found |= dict.fromkeys(others[i] for i in rng.choice(len(others), size - len(found), replace=False).tolist())
        requests.append((query, tuple(dataset.items[item_id] for item_id in found)))
    return requests


def measure_latency(scorer: Scorer, calls: Sequence[Request], *, warm_up: int = 3) -> Latency:
    """Time each call once, after ``warm_up`` untimed ones."""
    for query, items in calls[:warm_up]:
        scorer.score(query, items)
    times = []
    for query, items in calls:
        start = time.perf_counter()
        scorer.score(query, items)
        times.append((time.perf_counter() - start) * 1e3)
    return Latency(float(np.percentile(times, 50)), float(np.percentile(times, 95)), len(calls[0][1]), len(calls))
