"""What are the students of `make demo` worth on judged queries that they did not see, what does int8 cost them, and what are others worth?

    python benchmarks/bench_demo.py --data FOLDER --base-model models/minilm-l6 --work DIR [--only NAME ...]
    python benchmarks/bench_demo.py --data FOLDER --base-model A --teacher RECIPE --base-model B --teacher OTHER --work DIR

The queries of FOLDER are dealt out to folds. For each fold the demo's teacher and its students (recipes demo-student-l3, three layers, and
demo-student, mid-fusion) learn from the other folds alone, and judge its queries, in fp32 and as the int8 bundle that would be deployed; no
checkpoint is chosen on them: every run keeps its last one. The other students are demo-student with some keys changed. Several base models
make several teachers, whose ensemble teaches students that begin as the first of them. Quality, not speed. What is in DIR already is not
made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_ladder import INT8, LAST, Ensemble, int8, slug
from edgerec.training.config import Recipe, load_recipe
from edgerec.training.data import load_dataset
from edgerec.training.distill import distill
from edgerec.training.first_stage import Bm25
from edgerec.training.student import StudentScorer
from edgerec.training.teacher import Teacher, train_teacher
from held_out import Outcome, judge, open_folds, random_order, row
from numpy.typing import NDArray
from turns import describe_machine, report

TEACHER, ENSEMBLE, WITHOUT = "demo-teacher", "ensemble", " without features"


@dataclass(frozen=True, slots=True)
class Made:
    """A student: a shipped recipe, and keys of its ``[student]``, ``[fit]`` and ``[loss]`` that differ; or another one, its states kept
    otherwise."""

    recipe: str = "demo-student"
    same_as: str = ""
    state_precision: str = ""
    student: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)


TINY, LONGER = {"init": "models/tiny-bert"}, {"epochs": 6, "learning_rate": 5e-4}
WHOLE = {"state_width": 0, "state_precision": "fp16"}
EACH = {"states": "per_layer", "item_layers": 0, **WHOLE}
STUDENTS = {
    "demo-student-l3": Made("demo-student-l3"),
    "demo-student-l3 without features": Made("demo-student-l3", student={"features": False}),
    "demo-student": Made(),
    "cross": Made(student={"interaction": "cross"}),
    "cross without features": Made(student={"interaction": "cross", "features": False}),
    "four layers alone": Made(student={"query_layers": 4}),
    "four layers alone, twice the passes": Made(student={"query_layers": 4}, fit={"epochs": 4}),
    "four layers alone, closing slowly": Made(student={"query_layers": 4, "closing": 0.5}),
    "four layers alone, the teacher's vectors": Made(student={"query_layers": 4}, loss={"hidden": 5.0}),
    "four layers alone, more pairs": Made(student={"query_layers": 4, "unlabelled_per_query": 18}),
    "four layers alone, one whole state": Made(student={"query_layers": 4, **WHOLE}),
    "four layers alone, six of the item": Made(student={"query_layers": 4, "item_layers": 6}),
    "four layers alone, a whole state for each": Made(student={"query_layers": 4, **EACH}),
    "two layers of the item": Made(student={"item_layers": 2}),
    "six layers of the item": Made(student={"item_layers": 6}),
    "one whole state": Made(student=WHOLE),
    "64 numbers": Made(student={"state_width": 64}),
    "a whole state for each layer": Made(student=EACH),
    "fp16 states": Made(same_as="demo-student", state_precision="fp16"),
    "2 x 128": Made(student={"interaction": "cross", **TINY}, fit=LONGER),
    "2 x 128 mid": Made(student={"query_layers": 1, "item_layers": 1, **TINY}, fit=LONGER),
}
"""*demo-student* has two layers that see the query alone, four joint ones, and one state of 128 int8 numbers a token, after four layers of
its item's own."""


def main() -> None:
    """Make what is missing, judge it, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base-model", type=Path, action="append", required=True, help="what a teacher begins as; repeatable")
    parser.add_argument("--teacher", action="append", help="the recipe of each, in their order; default: demo-teacher")
    parser.add_argument("--work", type=Path, required=True, help="where folds and models are kept")
    parser.add_argument("--only", action="append", choices=list(STUDENTS), help="repeatable; default: the first two")
    parser.add_argument("--teachers-only", action="store_true", help="no students, and so no ensemble, which is calibrated for them")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of every run")
    parser.add_argument("--runs", type=int, default=1, help="of everything, folds too, with seeds from --seed on")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.teacher = options.teacher or [TEACHER] * len(options.base_model)
    machine = describe_machine()
    names = [] if options.teachers_only else options.only or ["demo-student-l3", "demo-student"]
    runs: list[dict[str, Outcome]] = []
    for seed in range(options.seed, options.seed + options.runs):
        folds = open_folds(options.data, options.work, options.folds, seed)
        runs.append(one_run(names, folds, seed, options))
    best = ENSEMBLE if ENSEMBLE in runs[0] else next(iter(teachers_of(options)))
    rows = table(runs, random_order(folds), best)
    if options.out:
        dataset = load_dataset(options.data).sha256
        content = {"data_sha256": dataset, "folds": options.folds, "seed": options.seed, "runs": options.runs, "rows": rows}
        report("edgerec-bench-demo", machine, ("torch", "transformers", "numpy"), content, options.out)


def one_run(names: Sequence[str], folds: Sequence[Path], seed: int, options: argparse.Namespace) -> dict[str, Outcome]:
    """Make what is missing of one seed's models, and judge them all."""

    def made(name: str, fold: Path) -> Path:
        return Path(options.work / f"{slug(name)}-{seed}-{fold.name}")

    taught = [STUDENTS[name].same_as or name for name in names]
    teachers = teachers_of(options)
    for fold in folds:
        for teacher, (recipe, base) in teachers.items():
            if not made(teacher, fold).exists():
                train_teacher([fold], str(base), last(load_recipe(Path(recipe)), seed), made(teacher, fold), resume=True)
        for name in taught:
            if not made(name, fold).exists():
                settings = last(recipe_of(STUDENTS[name]), seed)
                distill([made(teacher, fold) for teacher in teachers], [fold], settings, made(name, fold), resume=True)
    found = {"BM25": judge(folds, [Bm25(load_dataset(fold)) for fold in folds])}
    opened = {teacher: [Teacher.load(made(teacher, fold)) for fold in folds] for teacher in teachers}
    found |= {teacher: judge(folds, scorers) for teacher, scorers in opened.items()}
    if len(teachers) > 1 and taught:
        of_fold = zip(*opened.values(), strict=True)
        students = [made(taught[0], fold) for fold in folds]
        found[ENSEMBLE] = judge(folds, [Ensemble(list(members), one) for members, one in zip(of_fold, students, strict=True)])
    for name, student in zip(names, taught, strict=True):
        kept = STUDENTS[name].state_precision
        found[name] = judge(folds, [StudentScorer.load(made(student, fold), state_precision=kept) for fold in folds])
        if kept:
            continue
        with ExitStack() as stack:
            found[name + INT8] = judge(folds, [int8(made(student, fold), fold, stack) for fold in folds])
    return found


def teachers_of(options: argparse.Namespace) -> dict[str, tuple[str, Path]]:
    """Recipe and base model of each, by name."""
    pairs = list(zip(options.teacher, options.base_model, strict=True))
    return {Path(recipe).stem + (f" {base.name}" if len(pairs) > 1 else ""): (recipe, base) for recipe, base in pairs}


def recipe_of(made: Made) -> Recipe:
    """The recipe with its changes."""
    recipe = load_recipe(Path(made.recipe))
    student, fit, loss = replace(recipe.student, **made.student), replace(recipe.fit, **made.fit), replace(recipe.loss, **made.loss)
    return replace(recipe, student=student, fit=fit, loss=loss)


def last(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with this seed, and no look at dev before the end."""
    return replace(recipe, seed=seed, fit=replace(recipe.fit, eval_every=LAST))


def table(runs: Sequence[Mapping[str, Outcome]], random: NDArray[np.float64], teacher: str) -> list[dict[str, Any]]:
    """The report's rows, printed; a query's nDCG is the mean of the runs. Retention is (student - random order) / (teacher - random order),
    and the same of the cross student, where it is there."""
    found = {name: Outcome.mean([run[name] for run in runs]) for name in runs[0]}
    rows = [row(name, one, found["BM25"]) for name, one in found.items()]
    print("| | nDCG@10 | gain over BM25 | AUC | retention | of cross | int8 less fp32, nDCG@10 |\n|---|---:|---:|---:|---:|---:|---:|")
    for one in rows:
        name = one["name"]
        one["ndcg_by_run"] = [float(np.nanmean(run[name].ndcg)) for run in runs]
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*one["ndcg_difference"]) if "ndcg_difference" in one else "–"
        one["retention"], *one["retention_interval"] = found[name].retention(found[teacher], random)
        kept = "{:.1%} [{:.0%}, {:.0%}]".format(one["retention"], *one["retention_interval"])
        of_cross = loss = ""
        if "cross" in found:
            one["of_cross"], *one["of_cross_interval"] = found[name].retention(found["cross"], random)
            of_cross = "{:.1%} [{:.0%}, {:.0%}]".format(one["of_cross"], *one["of_cross_interval"])
        if name.endswith(INT8):
            one["less_fp32"] = found[name].difference(found[name.removesuffix(INT8)])
            loss = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*one["less_fp32"])
        print(f"| {name} | {one['ndcg']:.4f} | {gain} | {one['auc']:.3f} | {kept} | {of_cross} | {loss} |")
    for one in rows:
        if (bare := one["name"] + WITHOUT) in found:
            one["less_bare"] = found[one["name"]].difference(found[bare])
            print("features of {}: nDCG@10 {:+.4f} [{:+.4f}, {:+.4f}]".format(one["name"], *one["less_bare"]))
    return rows


if __name__ == "__main__":
    main()
