"""Which BM25 is the strongest baseline on judged product search? The answer is the default of ``edgerec.training.first_stage``.

    python benchmarks/bench_bm25.py --data FOLDER [--data FOLDER ...] --split train --split dev

A baseline may be tuned on the very judgements it is compared on: that only makes it harder to beat. Nothing is trained here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from edgerec.training.data import Dataset, load_dataset
from edgerec.training.first_stage import Bm25
from edgerec.training.judged import JudgedList, judged_lists, relevant_from
from edgerec.training.scorers import score_lists

from edgerec.metrics import auc, gain, ndcg

PARAMETERS = {"k1 0.9, b 0.4": (0.9, 0.4), "k1 1.2, b 0.75": (1.2, 0.75), "k1 1.5, b 0.75": (1.5, 0.75)}


def main() -> None:
    """Print one Markdown table for each data folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--split", action="append", required=True, help="repeatable; splits are pooled")
    parser.add_argument("--min-judged", type=int, default=2)
    options = parser.parse_args()
    for folder in options.data:
        dataset = load_dataset(folder)
        lists = [one for split in options.split for one in judged_lists(dataset, split, min_judged=options.min_judged)]
        print(f"\n{dataset.name}, {' + '.join(options.split)}: {len(lists):,} queries\n")
        print("| fields | plurals | parameters | nDCG@10 | AUC |\n|---|---|---|---:|---:|")
        for fields in (("title",), ("title", "text")):
            for fold in (False, True):
                for label, (k1, b) in PARAMETERS.items():
                    bm25 = Bm25(dataset, fields=fields, k1=k1, b=b, fold_plurals=fold)
                    quality, area = measure(bm25, dataset, lists)
                    print(
                        f"| {' + '.join(fields)} | {'folded' if fold else 'as they are'} | {label} | {quality:.4f} | {area:.4f} |",
                        flush=True,
                    )


def measure(bm25: Bm25, dataset: Dataset, lists: list[JudgedList]) -> tuple[float, float]:
    """Mean nDCG@10 over the queries that define it, and the AUC over all pairs."""
    scores = score_lists(bm25, lists)
    quality = [ndcg(gain(one.grades, dataset.grade_min), found, 10) for one, found in zip(lists, scores, strict=True)]
    relevant = np.concatenate([one.grades for one in lists]) >= relevant_from(dataset)
    return float(np.nanmean(quality)), auc(relevant, np.concatenate(scores))


if __name__ == "__main__":
    main()
