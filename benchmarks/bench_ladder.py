"""The ladder of students: what does each rung keep of its teacher in a shop whose queries it never saw, and what does it cost?

    python benchmarks/bench_ladder.py --general homedepot --data crowdflower --teacher BASE [--teacher MORE] --work DIR [--only NAME ...]

1. Teachers that were trained on the general data sets teach one student a rung there. It begins as the first teacher, or as ``--init``
   where that is no BERT.
2. For each fold of ``--data`` every teacher learns the shop (recipe ``--adapt``), and each rung's student learns on with them
   (``adapt-student``, and others like it).
3. Each fold's dev queries are judged by the fold's models, in fp32 and as the int8 bundle that would be deployed.

Retention is (student - random order) / (teacher - random order), with its 95 % interval over queries; of a mid-fusion student also the same
with its cross twin in the teacher's place. What is in DIR already is not made again, so the bench can be broken off. No checkpoint is
chosen on dev: every run keeps its last one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from edgerec.training.config import Recipe, load_recipe
from edgerec.training.data import load_dataset
from edgerec.training.distill import distill
from edgerec.training.evaluate import evaluate
from edgerec.training.export import export_student
from edgerec.training.first_stage import Bm25
from edgerec.training.prune import flops, prune
from edgerec.training.scorers import Scorer, open_bundle
from edgerec.training.student import Student, StudentScorer
from edgerec.training.teacher import Teacher, train_teacher
from held_out import Outcome, judge, open_folds, random_order, row
from numpy.typing import NDArray
from turns import report

from edgerec.builder import build_engine
from edgerec.machine import describe_machine
from edgerec.types import Item

RESULT = Path(__file__).parent / "results" / "ladder.json"
LAST = 1_000_000
"""``eval_every`` of a run that is looked at once, at its end."""
INT8 = " int8"
"""What a row's name ends with when it is the bundle's."""


@dataclass(frozen=True, slots=True)
class Rung:
    """How a student is made.

    Attributes
    ----------
    recipe : the shipped one that makes the general student.
    general, shop : keys of ``[student]`` that differ from the recipes', there and where it learns the shop.
    like : the rung whose general student it shares.
    taught_by : the rung that scores its pairs in the shop; empty: the teachers.
    begins_as : the rung whose student of the fold it begins as; empty: its own general student.
    adapt : the shipped recipe by which it learns the shop.
    """

    recipe: str
    general: Mapping[str, Any] = field(default_factory=dict)
    shop: Mapping[str, Any] = field(default_factory=dict)
    like: str = ""
    taught_by: str = ""
    begins_as: str = ""
    adapt: str = "adapt-student"


MID = {"interaction": "mid", "query_layers": 2, "item_layers": 4, "states": "one", "state_width": 128, "state_precision": "int8"}
BARE = {"features": False}
SIX_TIMES = {"unlabelled_per_query": 60, "span_queries": 10_000}
FIVE_TIMES = {"unlabelled_per_query": 30, "span_queries": 5000}
RUNGS = {
    "L6": Rung("student-l6"),
    "L6 without features": Rung("student-l6", BARE),
    "L6 pruned": Rung("prune-l6", like="L6"),
    "L6 with the shop's tokens": Rung("prune-l6", like="L6"),
    "L3": Rung("student-l3"),
    "L3, five times the pairs by L6": Rung("student-l3", shop=FIVE_TIMES, like="L3", taught_by="L6"),
    "L3 without features": Rung("student-l3", BARE),
    "L3 without unjudged pairs": Rung("student-l3", shop={"unlabelled_per_query": 0, "span_queries": 0}, like="L3"),
    "L3 without first-stage pairs": Rung("student-l3", shop={"unlabelled_per_query": 0}, like="L3"),
    "2 x 128": Rung("student-l2-128"),
    "2 x 128, six times the pairs": Rung("student-l2-128", shop=SIX_TIMES, like="2 x 128"),
    "2 x 128, five times the pairs by L6": Rung("student-l2-128", shop=FIVE_TIMES, like="2 x 128", taught_by="L6"),
    "2 x 128, ten times the pairs by L6, longer": Rung("student-l2-128", adapt="adapt-student-l2-128", like="2 x 128", taught_by="L6"),
    "2 x 128 without features": Rung("student-l2-128", BARE),
    "L6 mid": Rung("student-mid-l6"),
    "L6 mid, four layers alone": Rung("student-mid-l6", {"query_layers": 4}),
    "L6 mid, 128 numbers a token": Rung("student-mid-l6-128"),
    "L6 mid, four layers alone, 128 numbers a token": Rung("student-mid-l6-128", {"query_layers": 4}),
    "L6 mid, 128 numbers a token, from L6": Rung("student-l6", shop=MID, like="L6", begins_as="L6"),
    "2 x 128 mid": Rung("student-mid-l2-128"),
}
"""*L6 pruned* is the shop's L6 student with 60 % of its multiplications, after one pass of recovery in the shop. *L6 with the shop's
tokens* is the shop's L6 student with the vocabulary of the fold's items and training queries."""
PRUNED = {"L6 pruned": {"vocabulary": False}, "L6 with the shop's tokens": {"flops": 1.0}}
"""Of recipe ``prune-l6``, the keys of ``[prune]`` that differ."""
UNJUDGED = {"unlabelled_per_query": 0, "span_queries": 1000}
"""Of the general students: less than their recipes say, since every pair must be scored by every teacher."""


class Ensemble:
    """The mean of calibrated scores, as the student's ``training.json`` says it was taught."""

    def __init__(self, teachers: list[Teacher], student: Path) -> None:
        members = json.loads((student / "training.json").read_text())["teachers"]
        self._members = [(t, m.get("slope", 1.0), m.get("offset", 0.0)) for t, m in zip(teachers, members, strict=True)]

    def score(self, query: str, items: list[Item]) -> NDArray[np.float32]:
        """Scores float32 [N]."""
        each = [slope * t.score(query, items) + offset for t, slope, offset in self._members]
        mean: NDArray[np.float32] = np.mean(each, axis=0, dtype=np.float32)
        return mean


def main() -> None:
    """Make what is missing, judge it, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--general", type=Path, action="append", required=True, help="a data folder; repeatable")
    parser.add_argument("--data", type=Path, required=True, help="the shop whose queries are dealt out to folds")
    parser.add_argument("--teacher", type=Path, action="append", required=True, help="folder of `edgerec train`; repeatable")
    parser.add_argument("--adapt", type=Path, default=Path("adapt-teacher"), help="the recipe by which teachers learn the shop")
    parser.add_argument("--init", default="teacher", help="what a student of the first teacher's shape begins as; its folder")
    parser.add_argument("--work", type=Path, required=True, help="where folds and models are kept")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of every run")
    parser.add_argument("--only", action="append", choices=list(RUNGS), help="repeatable")
    parser.add_argument("--general-only", action="store_true", help="stop after the general students")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = describe_machine()
    names = [name for name in RUNGS if name in (options.only or RUNGS)]
    general = {name: general_student(name, options) for name in names}
    if options.general_only:
        return
    folds = open_folds(options.data, options.work, options.folds, options.seed)
    teachers = [[shop_teacher(number, fold, options) for number in range(len(options.teacher))] for fold in folds]
    students = {name: [shop_student(name, fold, t, options) for fold, t in zip(folds, teachers, strict=True)] for name in names}
    found = judged(folds, teachers, students, options)
    random = random_order(folds)
    rows = [ladder_row(name, found, random, students.get(name)) for name in found]
    print(table(rows))
    content = {
        "data": {one.name: load_dataset(one).sha256 for one in (options.data, *options.general)},
        "folds": options.folds,
        "seed": options.seed,
        "queries": len(found["BM25"].ndcg),
        "random_order": float(np.nanmean(random)),
        "rows": rows,
    }
    report("edgerec-bench-ladder", machine, ("torch", "transformers", "numpy"), content, options.out)
    models = [options.teacher[0], *dict.fromkeys(general.values())]
    for folder in options.general:
        print(evaluate(folder, "dev", models=models, min_judged=5, seed=options.seed).to_markdown())


def general_student(name: str, options: argparse.Namespace) -> Path:
    """The rung's student, taught on the general data sets."""
    name = RUNGS[name].like or name
    out: Path = options.work / f"general-{slug(name)}-{options.seed}"
    if out.exists():
        return out
    rung = RUNGS[name]
    recipe = last(load_recipe(Path(rung.recipe)), options)
    fresh = options.init != "teacher"  # it has not learnt to rank
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=2 if fresh else min(recipe.fit.epochs, 2), dropout=0.0))
    init = options.init if recipe.student.init == "teacher" else recipe.student.init
    recipe = replace(recipe, student=replace(recipe.student, init=init, **UNJUDGED, **rung.general))
    distill(options.teacher, options.general, recipe, out, resume=True)
    return out


def shop_teacher(number: int, fold: Path, options: argparse.Namespace) -> Path:
    """One of the teachers, after it has learnt the fold's shop."""
    out: Path = options.work / f"teacher-{options.seed}-{number}-{fold.name}"
    if not out.exists():
        train_teacher([fold], str(options.teacher[number]), last(load_recipe(options.adapt), options), out, resume=True)
    return out


def shop_student(name: str, fold: Path, teachers: list[Path], options: argparse.Namespace) -> Path:
    """The rung's student, after it has learnt the fold's shop."""
    out: Path = options.work / f"{slug(name)}-{options.seed}-{fold.name}"
    if out.exists():
        return out
    rung = RUNGS[name]
    if name in PRUNED:
        whole, recipe = shop_student("L6", fold, teachers, options), last(load_recipe(Path(rung.recipe)), options)
        prune(whole, [fold], replace(recipe, prune=replace(recipe.prune, **PRUNED[name])), out, teachers=teachers, resume=True)
        return out
    begin = shop_student(rung.begins_as, fold, teachers, options) if rung.begins_as else general_student(name, options)
    if rung.taught_by:
        teachers = [shop_student(rung.taught_by, fold, teachers, options)]
    recipe = last(load_recipe(Path(rung.adapt)), options)
    settings = replace(recipe.student, init=str(begin), features=StudentScorer.load(begin).features is not None, **rung.shop)
    distill(teachers, [fold], replace(recipe, student=settings), out, resume=True)
    return out


def last(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """The recipe for these data sets: no weights by name, no look at dev before the end."""
    return replace(recipe, seed=options.seed, fit=replace(recipe.fit, passes={}, eval_every=LAST))


def slug(name: str) -> str:
    """A file name."""
    return name.lower().translate(str.maketrans(" ", "-", ",'"))


def judged(
    folds: list[Path], teachers: list[list[Path]], students: dict[str, list[Path]], options: argparse.Namespace
) -> dict[str, Outcome]:
    """Every ranker over the folds."""
    found = {"BM25": judge(folds, [Bm25(load_dataset(fold)) for fold in folds])}
    opened = [[Teacher.load(one) for one in each] for each in teachers]
    for number, folder in enumerate(options.teacher):
        found[f"teacher {folder.name}"] = judge(folds, [one[number] for one in opened])
    taught_by_all = [folders for name, folders in students.items() if not RUNGS[name].taught_by]
    if len(options.teacher) > 1 and taught_by_all:
        found["ensemble"] = judge(folds, [Ensemble(t, s) for t, s in zip(opened, taught_by_all[0], strict=True)])
    for name, folders in students.items():
        found[name] = judge(folds, [StudentScorer.load(folder) for folder in folders])
        with ExitStack() as stack:
            scorers = [int8(folder, fold, stack) for folder, fold in zip(folders, folds, strict=True)]
            found[name + INT8] = judge(folds, scorers)
    return found


def int8(student: Path, fold: Path, stack: ExitStack) -> Scorer:
    """The student as the int8 bundle of the default backend, over a catalogue of the shop."""
    export, bundle = (student.with_name(f"{student.name}-{what}") for what in ("export", "int8"))
    if not export.exists():
        export_student(student, export, data=[fold])
    if not bundle.exists():
        build_engine(export, bundle, precision="int8")
    return stack.enter_context(open_bundle(bundle, load_dataset(fold).items.values())).scorer


def ladder_row(name: str, found: dict[str, Outcome], random: NDArray[np.float64], made: list[Path] | None) -> dict[str, Any]:
    """The report's row."""
    best = found.get("ensemble") or next(one for other, one in found.items() if other.startswith("teacher"))
    one = row(name, found[name], found["BM25"])
    one["retention"], *one["retention_interval"] = found[name].retention(best, random)
    if " mid" in name and (twin := cross_twin(name)) in found:
        one["of_cross"], *one["of_cross_interval"] = found[name].retention(found[twin], random)
    if name.endswith(INT8):
        one["of_fp32"] = one["ndcg"] / float(np.nanmean(found[name.removesuffix(INT8)].ndcg))
    elif made:
        student = StudentScorer.load(made[0]).student
        one["parameters"] = sum(p.numel() for p in student.parameters())
        if isinstance(student, Student):
            one["flops"] = flops(student.shape, 32)
    return one


def cross_twin(name: str) -> str:
    """The rung whose student is as large as this mid-fusion one and reads both sides together."""
    return name.partition(" mid")[0] + (INT8 if name.endswith(INT8) else "")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| | nDCG@10 | gain over BM25 | AUC | retention | of its cross twin |", "|---|---:|---:|---:|---:|---:|"]
    for one in rows:
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*one["ndcg_difference"]) if "ndcg_difference" in one else "–"
        kept, of_cross = (
            "{:.1%} [{:.0%}, {:.0%}]".format(one[key], *one[f"{key}_interval"]) if key in one else "" for key in ("retention", "of_cross")
        )
        lines.append(f"| {one['name']} | {one['ndcg']:.3f} | {gain} | {one['auc']:.3f} | {kept} | {of_cross} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
