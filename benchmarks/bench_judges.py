"""How well would a second judge rank? A yardstick for a ranker's nDCG@10 and AUC, not a bound.

    python benchmarks/bench_judges.py --data FOLDER [--data MORE] [--out FILE]

Items of one title under one query were judged apart. How often two such grades differ gives the chance of each second grade, given the
first. Every judged list is ranked by its own grades (equal ones in random order), and judged by second grades drawn with those chances:
nDCG@10 and AUC that one judge's order has before another. A ranker that knew what judges think on average would be above it. Judges may
have seen more than the title, and then a second grade is surer than it seems here. The interval is a bootstrap over the titles, 95 %.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from edgerec.training.data import Dataset, load_dataset
from edgerec.training.judged import relevant_from
from numpy.typing import NDArray
from turns import describe_machine, report

from edgerec.metrics import auc, gain, ndcg

Grades = NDArray[np.float64]


def main() -> None:
    """Print the table; write the report, if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="a data folder; repeatable")
    parser.add_argument("--min-judged", type=int, default=2, help="shorter lists are left out")
    parser.add_argument("--samples", type=int, default=100, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    print("| | titles judged twice | same grade | nDCG@10 of a second judge | AUC |\n|---|---:|---:|---:|---:|")
    for folder in options.data:
        dataset = load_dataset(folder)
        twins, rng = same_titles(dataset), np.random.default_rng(options.seed)
        lists = [np.array(list(one.values())) for split in dataset.qrels.values() for one in split.values()]
        lists = [one for one in lists if len(one) >= options.min_judged]
        drawn = [[twins[i] for i in rng.integers(len(twins), size=len(twins))] for _ in range(options.samples)]
        found = np.array([second_judge(dataset, lists, one, rng) for one in drawn])
        middle, low, high = found.mean(axis=0), *np.percentile(found, (2.5, 97.5), axis=0)
        same = float(np.mean([agreement(one) for one in twins]))
        rows.append({"data": dataset.name, "data_sha256": dataset.sha256, "titles": len(twins), "same_grade": same})
        rows[-1] |= {name: [middle[i], low[i], high[i]] for i, name in enumerate(("ndcg", "auc"))}
        figures = " | ".join(f"{middle[i]:.3f} [{low[i]:.3f}, {high[i]:.3f}]" for i in range(2))
        print(f"| {dataset.name} | {len(twins)} | {same:.0%} | {figures} |")
    if options.out:
        report(
            "edgerec-bench-judges",
            describe_machine(),
            ("numpy",),
            {"seed": options.seed, "min_judged": options.min_judged, "rows": rows},
            options.out,
        )


def same_titles(dataset: Dataset) -> list[Grades]:
    """The grades of the items that share a title under a query, two or more each."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for judged in dataset.qrels.values():
        for query, items in judged.items():
            for item, grade in items.items():
                found[query, " ".join(dataset.items[item].title.lower().split())].append(grade)
    return [np.array(grades) for grades in found.values() if len(grades) > 1]


def agreement(grades: Grades) -> float:
    """The share of pairs that have the same grade."""
    n = len(grades)
    return float(((grades[:, None] == grades).sum() - n) / (n * (n - 1)))


def second_judge(dataset: Dataset, lists: list[Grades], twins: list[Grades], rng: np.random.Generator) -> tuple[float, float]:
    """nDCG@10 and AUC of the lists' own grades before one draw of second grades. A grade that no twin has is its own second."""
    seconds: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for grades in twins:
        for i, first in enumerate(grades.tolist()):
            seconds[first] += [(other, 1 / (len(grades) - 1)) for other in np.delete(grades, i).tolist()]
    first = np.concatenate(lists)
    second = first.copy()
    for grade, drawn in seconds.items():
        values, weights = np.array(drawn).T
        second[first == grade] = rng.choice(values, (first == grade).sum(), p=weights / weights.sum())
    order = first + 1e-6 * rng.random(len(first))
    ends = np.cumsum([len(one) for one in lists])[:-1]
    quality = [ndcg(gain(one, dataset.grade_min), o, 10) for one, o in zip(np.split(second, ends), np.split(order, ends), strict=True)]
    return float(np.nanmean(quality)), auc(second >= relevant_from(dataset), order)


if __name__ == "__main__":
    main()
