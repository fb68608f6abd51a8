"""Times of single calls, for the sections of gpu_suite.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from fixtures_export import WORDS

from edgerec import Ranker


def rank_times(ranker: Ranker, ids: list[str], callers: int, calls: int) -> tuple[list[float], str]:
    """Milliseconds of `Ranker.rank`, by so many callers at once, after 20 that do not count; and what results said."""
    queries = [" ".join(np.random.default_rng(seed).choice(WORDS, 3)) for seed in range(20)]
    notes: set[str] = set()

    def call(number: int) -> float:
        began = perf_counter()
        result = ranker.rank(queries[number % 20], ids)
        took = 1e3 * (perf_counter() - began)
        notes.add(result.reason)
        return took

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(20)))
        return list(pool.map(call, range(max(calls, callers)))), "; ".join(sorted(notes - {""}))


def percentiles(times: list[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    return {f"p{q} ms": float(np.percentile(times, q)) for q in (50, 95, 99)}
