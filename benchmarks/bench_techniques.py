r"""What is each technique of the fit worth? Cross-validation over the queries of one data set, every technique against the plain recipe;
and what fewer judged queries would give.

    python benchmarks/bench_techniques.py --data FOLDER --base-model TEACHER --recipe BASE.toml --work DIR [--only NAME ...]

Each query is scored by the model of the fold that did not train on it, and a difference is paired by query. A run that is in DIR already is
not repeated, so the bench can be broken off. ``--base-model`` may be a teacher of `edgerec train` on other data: then the row "as it came"
is what that data alone gives on this one.

The published table is of a 2 x 128 encoder, small enough for three runs of everything on two cores. What is worth something there need not
be worth it in a larger one.

    edgerec train --data homedepot --base-model models/tiny-bert --recipe benchmarks/recipes/l2-128-general.toml --out runs/l2-128
    python benchmarks/bench_techniques.py --data crowdflower --base-model runs/l2-128 --recipe benchmarks/recipes/l2-128-adapt.toml \
        --runs 3 --work runs/techniques
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_ladder import LAST
from edgerec.training.config import Recipe, load_recipe, recipe_from_json
from edgerec.training.data import Dataset, load_dataset
from edgerec.training.first_stage import Bm25
from edgerec.training.teacher import Teacher, train_teacher
from held_out import Outcome, fewer, judge, open_folds, row
from turns import report

from edgerec.machine import describe_machine

RESULT = Path(__file__).parent / "results" / "techniques.json"
PLAIN, LONGER = "plain", "twice the passes"
TECHNIQUES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "pointwise only": {"loss": {"bce": 1.0, "listwise": 0.0}},
    "listwise only": {"loss": {"bce": 0.0, "listwise": 1.0}},
    "pointwise and pairwise": {"loss": {"bce": 1.0, "listwise": 0.0, "pairwise": 0.3}},
    "FGM": {"fit": {"attack": {"kind": "fgm", "epsilon": 0.5}}},
    "AWP": {"fit": {"attack": {"kind": "awp", "epsilon": 0.005}}},
    "R-Drop": {"loss": {"r_drop": 0.5}},
    "typos, dropped and swapped words": {"augment": {"typo": 0.1, "token_drop": 0.05, "token_swap": 0.1}},
    "description too": {"text": {"item_fields": ["title", "text"], "max_tokens": 96}},
    "layer-wise rates": {"fit": {"layer_decay": 0.8}},
    "moving average": {"fit": {"ema": 0.99}},
    "half of the first weights": {"fit": {"start_share": 0.5}},
    LONGER: {},
    "LoRA, rank 8": {"fit": {"learning_rate": 1e-3, "lora": {"rank": 8}}},
}
MIXED, BEFORE = "other data mixed with it", "other data before it"
"""Trained on ``--beside`` too; before it: in every pass."""
FEWER = {"half of the queries": 2, "a quarter of the queries": 4}
"""The plain recipe with one in so many of the training queries, seen so many times more often: as many steps."""


def main() -> None:
    """Train what is missing, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--beside", type=Path, help=f"another data set, for {MIXED!r} and {BEFORE!r}")
    parser.add_argument("--recipe", type=Path, required=True, help="the plain recipe: a TOML file, or a shipped name")
    parser.add_argument("--work", type=Path, required=True, help="where folds and models are kept")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of the first run")
    parser.add_argument("--runs", type=int, default=1, help="of each technique, with seeds from --seed on; a query's nDCG is their mean")
    parser.add_argument(
        "--only", action="append", choices=[*TECHNIQUES, MIXED, BEFORE, *FEWER], help=f"repeatable; {PLAIN} is always there"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = describe_machine()
    folds = open_folds(options.data, options.work, options.folds, options.seed)
    base = load_recipe(options.recipe)
    found = {"BM25": judge(folds, [Bm25(load_dataset(fold)) for fold in folds])}
    if (Path(options.base_model) / "training.json").exists():
        found["as it came"] = judge(folds, [Teacher.load(Path(options.base_model))] * len(folds))
    known = [*TECHNIQUES, *((MIXED, BEFORE) if options.beside else ()), *FEWER]
    names = [PLAIN, *(n for n in known if n != PLAIN and n in (options.only or known))]
    for name in names:
        taught = [fewer(fold, FEWER[name], options.seed) for fold in folds] if name in FEWER else folds
        outcomes = []
        for seed in range(options.seed, options.seed + options.runs):
            models = [trained(name, fold, options, changed(base, name, seed)) for fold in taught]
            outcomes.append(judge(folds, [Teacher.load(model) for model in models]))
        found[name] = Outcome.mean(outcomes)
        print(table(found), flush=True)
    write(options, found, machine, load_dataset(options.data))


def changed(base: Recipe, name: str, seed: int) -> Recipe:
    """The plain recipe with a technique's keys."""

    def merged(table: Any, changes: Any) -> Any:
        if not isinstance(changes, dict):
            return changes
        return {**table, **{key: merged(table.get(key), value) for key, value in changes.items()}}

    times = FEWER.get(name, 2 if name == LONGER else 1)
    changes = {"fit": {"epochs": base.fit.epochs * times}} if times > 1 else TECHNIQUES.get(name, {})
    kept_last = merged(base.to_json(), {"fit": {"eval_every": LAST}})
    return recipe_from_json(merged(kept_last, {**changes, "name": name, "seed": seed}), name)


def trained(name: str, fold: Path, options: argparse.Namespace, recipe: Recipe) -> Path:
    """The fold's model."""
    out: Path = options.work / f"{name.replace(' ', '-').replace(',', '')}-{recipe.seed}-{fold.name}"
    if out.exists():
        return out
    data = [options.beside, fold] if name in (MIXED, BEFORE) else [fold]
    if name == BEFORE:
        recipe = replace(recipe, fit=replace(recipe.fit, curriculum=tuple(load_dataset(one).name for one in data)))
    train_teacher(data, options.base_model, recipe, out)
    return out


def rows(found: dict[str, Outcome]) -> list[dict[str, Any]]:
    """The report's rows, beside the plain recipe."""
    return [row(name, outcome, found.get(PLAIN)) for name, outcome in found.items()]


def table(found: dict[str, Outcome]) -> str:
    """Markdown."""
    lines = ["| | nDCG@10 | difference | AUC | difference |", "|---|---:|---:|---:|---:|"]
    for one in rows(found):
        difference = "–"
        if "ndcg_difference" in one:
            value, low, high = one["ndcg_difference"]
            difference = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        area = f"{one['auc_difference']:+.3f}" if "auc_difference" in one else "–"
        lines.append(f"| {one['name']} | {one['ndcg']:.3f} | {difference} | {one['auc']:.3f} | {area} |")
    return "\n".join(lines) + "\n"


def write(options: argparse.Namespace, found: dict[str, Outcome], machine: dict[str, Any], dataset: Dataset) -> None:
    """The report as JSON."""
    content = {
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "folds": options.folds,
        "seed": options.seed,
        "runs": options.runs,
        "queries": len(found["BM25"].ndcg),
        "recipe": load_recipe(options.recipe).to_json(),
        "techniques": TECHNIQUES,
        "rows": rows(found),
    }
    report("edgerec-bench-techniques", machine, ("torch", "transformers", "numpy"), content, options.out)


if __name__ == "__main__":
    main()
