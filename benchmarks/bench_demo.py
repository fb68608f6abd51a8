"""What are the students of `make demo` worth on judged queries that they did not see, what does int8 cost them, and what are others worth?

    python benchmarks/bench_demo.py --data FOLDER --base-model models/minilm-l6 --work DIR [--only NAME ...]

The queries of FOLDER are dealt out to folds. For each fold the demo's teacher and its students (recipes demo-student-l3, three layers, and
demo-student, mid-fusion) learn from the other folds alone, and judge its queries, in fp32 and as the int8 bundle that would be deployed; no
checkpoint is chosen on them: every run keeps its last one. The other students are demo-student with some keys changed. Quality, not speed.
What is in DIR already is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_ladder import INT8, LAST, int8, slug
from edgerec.training.config import Recipe, load_recipe
from edgerec.training.data import load_dataset
from edgerec.training.distill import distill
from edgerec.training.first_stage import Bm25
from edgerec.training.student import StudentScorer
from edgerec.training.teacher import Teacher, train_teacher
from held_out import Outcome, judge, open_folds, random_order, row
from turns import describe_machine, report

TEACHER = "demo-teacher"


@dataclass(frozen=True, slots=True)
class Made:
    """A student: a shipped recipe, and keys of its ``[student]`` and ``[fit]`` that differ."""

    recipe: str = "demo-student"
    student: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)


TINY, LONGER = {"init": "models/tiny-bert"}, {"epochs": 6, "learning_rate": 5e-4}
STUDENTS = {
    "demo-student-l3": Made("demo-student-l3"),
    "demo-student": Made(),
    "cross": Made(student={"interaction": "cross"}),
    "four layers alone": Made(student={"query_layers": 4}),
    "four layers alone, twice the passes": Made(student={"query_layers": 4}, fit={"epochs": 4}),
    "one whole state": Made(student={"state_width": 0}),
    "64 numbers": Made(student={"state_width": 64}),
    "a whole state for each layer": Made(student={"states": "per_layer", "item_layers": 0, "state_width": 0}),
    "fp16 states": Made(student={"state_precision": "fp16"}),
    "2 x 128": Made(student={"interaction": "cross", **TINY}, fit=LONGER),
    "2 x 128 mid": Made(student={"query_layers": 1, "item_layers": 1, **TINY}, fit=LONGER),
}
"""*demo-student* has two layers that see the query alone, four joint ones, and one state of 128 int8 numbers a token, after four layers of
its item's own."""


def main() -> None:
    """Make what is missing, judge it, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where folds and models are kept")
    parser.add_argument("--only", action="append", choices=list(STUDENTS), help="repeatable; default: the first two")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of every run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = describe_machine()
    names = options.only or ["demo-student-l3", "demo-student"]
    folds = open_folds(options.data, options.work, options.folds, options.seed)

    def made(name: str, fold: Path) -> Path:
        return Path(options.work / f"{slug(name)}-{options.seed}-{fold.name}")

    for fold in folds:
        if not made(TEACHER, fold).exists():
            train_teacher([fold], str(options.base_model), last(load_recipe(Path(TEACHER)), options.seed), made(TEACHER, fold), resume=True)
        for name in names:
            if not made(name, fold).exists():
                distill([made(TEACHER, fold)], [fold], last(recipe_of(STUDENTS[name]), options.seed), made(name, fold), resume=True)
    found = {"BM25": judge(folds, [Bm25(load_dataset(fold)) for fold in folds])}
    found[TEACHER] = judge(folds, [Teacher.load(made(TEACHER, fold)) for fold in folds])
    for name in names:
        found[name] = judge(folds, [StudentScorer.load(made(name, fold)) for fold in folds])
        with ExitStack() as stack:
            found[name + INT8] = judge(folds, [int8(made(name, fold), fold, stack) for fold in folds])
    rows = table(found, random_order(folds))
    if options.out:
        content = {"data_sha256": load_dataset(options.data).sha256, "folds": options.folds, "seed": options.seed, "rows": rows}
        report("edgerec-bench-demo", machine, ("torch", "transformers", "numpy"), content, options.out)


def recipe_of(made: Made) -> Recipe:
    """The recipe with its changes."""
    recipe = load_recipe(Path(made.recipe))
    return replace(recipe, student=replace(recipe.student, **made.student), fit=replace(recipe.fit, **made.fit))


def last(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with this seed, and no look at dev before the end."""
    return replace(recipe, seed=seed, fit=replace(recipe.fit, eval_every=LAST))


def table(found: Mapping[str, Outcome], random: float) -> list[dict[str, Any]]:
    """The report's rows, printed. Retention is (student - random order) / (teacher - random order)."""
    best = float(np.nanmean(found[TEACHER].ndcg))
    rows = [row(name, one, found["BM25"]) for name, one in found.items()]
    print("| | nDCG@10 | gain over BM25 | AUC | retention | int8 less fp32, nDCG@10 |\n|---|---:|---:|---:|---:|---:|")
    for one in rows:
        name = one["name"]
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*one["ndcg_difference"]) if "ndcg_difference" in one else "–"
        one["retention"] = (one["ndcg"] - random) / (best - random)
        loss = ""
        if name.endswith(INT8):
            one["less_fp32"] = found[name].difference(found[name.removesuffix(INT8)])
            loss = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*one["less_fp32"])
        print(f"| {name} | {one['ndcg']:.4f} | {gain} | {one['auc']:.3f} | {one['retention']:.1%} | {loss} |")
    return rows


if __name__ == "__main__":
    main()
