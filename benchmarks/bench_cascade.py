r"""Is a cascade worth more than each of its students at the same cost?

    python benchmarks/bench_demo.py --data FOLDER --base-model models/minilm-l6 --work DIR \
        --only "2 x 128 mid" --only cross --only demo-student
    python benchmarks/bench_cascade.py --data FOLDER --work DIR

The students of bench_demo.py, as int8 bundles: *2 x 128 mid* ranks all candidates, *cross* or *demo-student* the best n of them again.
Quality: every judged list of FOLDER's folds, by models that did not see its query. Time: `Cascade.rank` and `Ranker.rank` for 100 and for
1,000 candidates over a catalogue of FOLDER's items, contestants in turns; ratios to *cross*.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_frontier import CANDIDATES, Request, open_ranker, requests
from bench_ladder import slug
from edgerec.training.data import load_dataset
from held_out import judge, open_folds, row
from numpy.typing import NDArray
from turns import Times, describe_machine, ratio, report, table, take_turns

from edgerec import Cascade, Item, Ranker

FIRST, SECOND = "2 x 128 mid", ("cross", "demo-student")
BEST = (10, 20)


class Ordered:
    """A ranker as a scorer of whole lists: what stands higher scores more."""

    def __init__(self, ranker: Ranker | Cascade) -> None:
        self._ranker = ranker

    def score(self, query: str, items: list[Item]) -> NDArray[np.float32]:
        """Scores float32 [N]."""
        ids = [item.id for item in items]
        place = {one: i for i, one in enumerate(self._ranker.rank(query, ids, top_k=len(ids)).ids)}
        return np.array([-place[one] for one in ids], np.float32)


def main() -> None:
    """Judge all, time all, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="that of bench_demo.py")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine, dataset = describe_machine(), load_dataset(options.data)
    folds = open_folds(options.data, options.work, options.folds, options.seed)
    with ExitStack() as stack:
        opened = [contestants(fold, options, stack) for fold in folds]
        found = {name: judge(folds, [Ordered(one[name]) for one in opened]) for name in opened[0]}
        times = {count: timed(opened[0], requests(dataset, count, options.seed), options.rounds) for count in CANDIDATES}
    plain = found[SECOND[0]]
    rows: list[dict[str, Any]] = []
    for name, outcome in found.items():
        one = row(name, outcome, plain)
        value, low, high = one.get("ndcg_difference", (0.0, 0.0, 0.0))
        cost = {f"time, {count}": round(ratio(times[count], name, SECOND[0]), 3) for count in CANDIDATES}
        rows.append({"": name, "nDCG@10": round(one["ndcg"], 4), f"less {SECOND[0]}": f"{value:+.4f} [{low:+.4f}, {high:+.4f}]", **cost})
    print(table(rows))
    if options.out:
        content = {"data_sha256": dataset.sha256, "folds": options.folds, "seed": options.seed, "threads": options.threads, "rows": rows}
        report("edgerec-bench-cascade", machine, ("numpy",), content, options.out)


def contestants(fold: Path, options: argparse.Namespace, stack: ExitStack) -> dict[str, Ranker | Cascade]:
    """The fold's students, and the cascades of them."""
    alone: dict[str, Ranker] = {}
    for name in (*SECOND, FIRST):
        bundle = options.work / f"{slug(name)}-{options.seed}-{fold.name}-int8"
        if not bundle.exists():
            raise SystemExit(f"{bundle} is missing: run bench_demo.py with --only {name!r} first")
        alone[name] = stack.enter_context(open_ranker(bundle, load_dataset(fold), options.threads))
    both = {f"{FIRST}, the best {n} by {name}": Cascade(alone[FIRST], alone[name], n=n) for name in SECOND for n in BEST}
    return {**alone, **both}


def timed(rankers: dict[str, Ranker | Cascade], asked: list[Request], rounds: int) -> Times:
    """Nanoseconds of each call, by contestant and round."""

    def answer(ranker: Ranker | Cascade, request: Request) -> object:
        return ranker.rank(*request)

    return take_turns({name: partial(answer, ranker) for name, ranker in rankers.items()}, asked, rounds=rounds)


if __name__ == "__main__":
    main()
