"""What does `Ranker.nearest` find of what is relevant, beside BM25, and both together? And how long does a scan take?

    python benchmarks/bench_retrieve.py BUNDLE --data FOLDER [--data FOLDER ...] --split dev

BUNDLE is of a student with a retrieval head. The whole corpus of each folder is the catalogue (built here, in a temporary folder).
Recall@100 is the share of a query's judged relevant items among the first 100, averaged over queries that have one. Judges saw what some
search had found for them: what none of them saw counts as not relevant, which favours whatever resembles that search. The two lists are
joined by reciprocal rank fusion (Cormack et al., SIGIR 2009): the sum of 1 / (60 + rank).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgerec.training.data import load_dataset
from edgerec.training.first_stage import Bm25
from edgerec.training.judged import judged_lists, relevant_from
from turns import describe_machine, report, table

from edgerec import Ranker
from edgerec.catalog import build_catalog
from edgerec.ranker_retrieve import nearest
from edgerec.vectors import ItemVectors

RESULT = Path(__file__).parent / "results" / "retrieve.json"
DEPTH = 100
FUSION = 60
SCANNED = 1_000_000


def fuse(lists: Sequence[Sequence[str]]) -> list[str]:
    """Reciprocal rank fusion; ties by the place in the first list that has the id."""
    scores: dict[str, float] = {}
    for found in lists:
        for rank, name in enumerate(found, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (FUSION + rank)
    return sorted(scores, key=lambda name: -scores[name])


def recalls(find: Callable[[str], Sequence[str]], asked: Sequence[tuple[str, frozenset[str]]]) -> list[float]:
    """Recall@DEPTH of each query with its relevant items."""
    return [len(right.intersection(find(query)[:DEPTH])) / len(right) for query, right in asked]


def quality(bundle: Path, folder: Path, splits: Sequence[str]) -> dict[str, Any]:
    """Recall@DEPTH of the three ways over one data folder, with a bootstrap interval of the mean."""
    dataset = load_dataset(folder)
    bar = relevant_from(dataset)
    asked = []
    for split in splits:
        for one in judged_lists(dataset, split):
            right = frozenset(item.id for item, grade in zip(one.items, one.grades, strict=True) if grade >= bar)
            if right:
                asked.append((one.query, right))
    bm25 = Bm25(dataset)
    with tempfile.TemporaryDirectory() as temporary:
        build_catalog(dataset.items.values(), bundle, Path(temporary) / "catalog")
        with Ranker.open(bundle, catalog=Path(temporary) / "catalog") as ranker:
            by_words = {query: [name for name, _ in bm25.search(query, DEPTH)] for query, _ in asked}
            by_vector = {query: ranker.nearest(query, DEPTH)[0] for query, _ in asked}
    ways: dict[str, Callable[[str], Sequence[str]]] = {
        "BM25": by_words.__getitem__,
        "vectors": by_vector.__getitem__,
        "both": lambda query: fuse([by_words[query], by_vector[query]]),
    }
    rows = []
    for name, find in ways.items():
        found = np.array(recalls(find, asked))
        drawn = np.random.default_rng(0).choice(found, (2000, len(found))).mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows.append({"way": name, f"recall@{DEPTH}": float(found.mean()), "low": float(low), "high": float(high)})
    return {"data": dataset.name, "splits": list(splits), "items": len(dataset.items), "queries": len(asked), "rows": rows}


def scan_ms(width: int, rounds: int) -> list[float]:
    """Milliseconds of a scan of SCANNED vectors and the choice of the best DEPTH, one thread."""
    rng = np.random.default_rng(0)
    vectors = ItemVectors(rng.integers(-127, 128, (SCANNED, width), dtype=np.int8), np.full(SCANNED, 0.01, np.float32))
    taken = []
    for _ in range(rounds):
        query = rng.integers(-127, 128, width, dtype=np.int8)
        start = time.perf_counter()
        nearest(query, 0.01, [vectors], DEPTH)
        taken.append((time.perf_counter() - start) * 1000)
    return taken


def main() -> None:
    """Print the tables and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--split", action="append", required=True, help="repeatable; splits are pooled")
    parser.add_argument("--rounds", type=int, default=30, help="timed scans (default 30)")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = describe_machine()
    shops = [quality(options.bundle, folder, options.split) for folder in options.data]
    for one in shops:
        print(f"\n{one['data']}, {' + '.join(one['splits'])}: {one['queries']:,} queries, {one['items']:,} items\n\n{table(one['rows'])}")
    with Ranker.open(options.bundle) as ranker:
        width = ranker.head.width if ranker.head is not None else 128
    taken = scan_ms(width, options.rounds)
    scan = {"items": SCANNED, "width": width, "ms_median": float(np.median(taken)), "ms_least": min(taken), "rounds": options.rounds}
    print(f"\nScan\n\n{table([scan])}")
    report("edgerec-bench-retrieve", machine, ("numpy", "bm25s"), {"shops": shops, "scan": scan}, options.out)


if __name__ == "__main__":
    main()
