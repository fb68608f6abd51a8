"""What are the students of `make demo` worth on judged queries that they did not see?

    python benchmarks/bench_demo.py --data FOLDER --base-model models/minilm-l6 --work DIR

The queries of FOLDER are dealt out to folds. For each fold the demo's teacher and its students (recipes demo-student-l3, three layers, and
demo-student, mid-fusion) learn from the other folds alone, and judge its queries; no checkpoint is chosen on them: every run keeps its last
one. Quality, not speed. What is in DIR already is not made again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from edgerec.training.config import Recipe, load_recipe
from edgerec.training.data import load_dataset
from edgerec.training.distill import distill
from edgerec.training.first_stage import Bm25
from edgerec.training.student import StudentScorer
from edgerec.training.teacher import Teacher, train_teacher
from held_out import judge, open_folds, random_order, row
from turns import describe_machine, report

TEACHER, STUDENTS = "demo-teacher", ("demo-student-l3", "demo-student")
LAST = 1_000_000
"""``eval_every`` of a run that is looked at once, at its end."""


def main() -> None:
    """Make what is missing, judge it, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where folds and models are kept")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of every run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = describe_machine()

    def recipe(name: str) -> Recipe:
        found = load_recipe(Path(name))
        return replace(found, seed=options.seed, fit=replace(found.fit, eval_every=LAST))

    folds = open_folds(options.data, options.work, options.folds, options.seed)
    for fold in folds:
        teacher = options.work / f"{TEACHER}-{options.seed}-{fold.name}"
        if not teacher.exists():
            train_teacher([fold], str(options.base_model), recipe(TEACHER), teacher, resume=True)
        for name in STUDENTS:
            student = options.work / f"{name}-{options.seed}-{fold.name}"
            if not student.exists():
                distill([teacher], [fold], recipe(name), student, resume=True)
    found = {"BM25": judge(folds, [Bm25(load_dataset(fold)) for fold in folds])}
    found[TEACHER] = judge(folds, [Teacher.load(options.work / f"{TEACHER}-{options.seed}-{fold.name}") for fold in folds])
    for name in STUDENTS:
        found[name] = judge(folds, [StudentScorer.load(options.work / f"{name}-{options.seed}-{fold.name}") for fold in folds])
    random, best = random_order(folds), float(np.nanmean(found[TEACHER].ndcg))
    rows = [row(name, one, found["BM25"]) for name, one in found.items()]
    print("| | nDCG@10 | gain over BM25 | AUC | retention |\n|---|---:|---:|---:|---:|")
    for one in rows:
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*one["ndcg_difference"]) if "ndcg_difference" in one else "–"
        one["retention"] = (one["ndcg"] - random) / (best - random)
        print(f"| {one['name']} | {one['ndcg']:.3f} | {gain} | {one['auc']:.3f} | {one['retention']:.1%} |")
    if options.out:
        content = {"data_sha256": load_dataset(options.data).sha256, "folds": options.folds, "seed": options.seed, "random_order": random}
        report("edgerec-bench-demo", machine, ("torch", "transformers", "numpy"), {**content, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
