"""What is each technique of the fit worth? Cross-validation over the queries of one data set, every technique against the plain recipe.

    python benchmarks/bench_techniques.py --data FOLDER --base-model TEACHER --recipe BASE.toml --work DIR [--only NAME ...]

Each query is scored by the model of the fold that did not train on it, and a difference is paired by query. A run that is in DIR already is
not repeated, so the bench can be broken off. ``--base-model`` may be a teacher of `edgerec train` on other data: then the row "as it came"
is what that data alone gives on this one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgerec.training.config import Recipe, load_recipe, recipe_from_json
from edgerec.training.data import Dataset, load_dataset
from edgerec.training.first_stage import Bm25
from edgerec.training.folds import write_folds
from edgerec.training.judged import judged_lists, relevant_from
from edgerec.training.scorers import score_lists
from edgerec.training.teacher import Teacher, train_teacher
from numpy.typing import NDArray

from edgerec.machine import describe_machine, utc_now
from edgerec.metrics import auc, bootstrap_interval, gain, ndcg

RESULT = Path(__file__).parent / "results" / "techniques.json"
PLAIN = "plain"
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
    "LoRA, rank 8": {"fit": {"learning_rate": 3e-4, "lora": {"rank": 8}}},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One ranker over all folds: nDCG@10 of every query (float64 [Q], NaN where undefined), AUC of every fold, seconds of a training."""

    ndcg: NDArray[np.float64]
    auc: NDArray[np.float64]
    seconds: float


def main() -> None:
    """Train what is missing, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--recipe", type=Path, required=True, help="the plain recipe: a TOML file, or a shipped name")
    parser.add_argument("--work", type=Path, required=True, help="where folds and models are kept")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of the recipe")
    parser.add_argument("--only", action="append", choices=list(TECHNIQUES), help=f"repeatable; {PLAIN} is always there")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = describe_machine()
    folder = options.work / f"folds-{options.folds}-{options.seed}"
    if not folder.exists():
        write_folds(options.data, folder, count=options.folds, seed=options.seed)
    folds = [folder / str(i) for i in range(options.folds)]
    base = load_recipe(options.recipe)
    found = {"BM25": baseline(folds)}
    if (Path(options.base_model) / "training.json").exists():
        found["as it came"] = judged(folds, [Path(options.base_model)] * len(folds), 0.0)
    for name in [PLAIN, *(n for n in TECHNIQUES if n != PLAIN and n in (options.only or TECHNIQUES))]:
        recipe = changed(base, name, options.seed)
        models, seconds = zip(*(trained(fold, options, recipe, name) for fold in folds), strict=True)
        found[name] = judged(folds, list(models), float(np.mean(seconds)))
        print(table(found), flush=True)
    write(options, found, machine, load_dataset(options.data))


def changed(base: Recipe, name: str, seed: int) -> Recipe:
    """The plain recipe with a technique's keys."""

    def merged(table: Any, changes: Any) -> Any:
        if not isinstance(changes, dict):
            return changes
        return {**table, **{key: merged(table.get(key), value) for key, value in changes.items()}}

    return recipe_from_json(merged(base.to_json(), {**TECHNIQUES[name], "name": name, "seed": seed}), name)


def trained(fold: Path, options: argparse.Namespace, recipe: Recipe, name: str) -> tuple[Path, float]:
    """The fold's model, and the seconds it took to make (the first time, if it is there already)."""
    out = options.work / f"{name.replace(' ', '-').replace(',', '')}-{options.seed}-{fold.name}"
    clock = out.with_name(out.name + ".seconds")
    if not out.exists():
        start = time.monotonic()
        train_teacher([fold], options.base_model, recipe, out)
        clock.write_text(f"{time.monotonic() - start}\n")
    return out, float(clock.read_text())


def judged(folds: list[Path], models: list[Path], seconds: float) -> Outcome:
    """Every query by the model of its fold."""
    return over(folds, [Teacher.load(model) for model in models], seconds)


def baseline(folds: list[Path]) -> Outcome:
    """BM25 has no folds; its queries come in the same order."""
    return over(folds, [Bm25(load_dataset(fold)) for fold in folds], 0.0)


def over(folds: list[Path], scorers: list[Any], seconds: float) -> Outcome:
    """nDCG by query and AUC by fold."""
    quality: list[float] = []
    areas: list[float] = []
    for fold, scorer in zip(folds, scorers, strict=True):
        dataset = load_dataset(fold)
        lists = judged_lists(dataset, "dev", min_judged=2)
        scores = score_lists(scorer, lists)
        quality += [ndcg(gain(one.grades, dataset.grade_min), s, 10) for one, s in zip(lists, scores, strict=True)]
        areas.append(auc(np.concatenate([one.grades for one in lists]) >= relevant_from(dataset), np.concatenate(scores)))
    return Outcome(np.array(quality), np.array(areas), seconds)


def rows(found: dict[str, Outcome]) -> list[dict[str, Any]]:
    """The report's rows: means, and the paired difference to the plain recipe with its 95 % interval."""
    out = []
    for name, one in found.items():
        row: dict[str, Any] = {"name": name, "ndcg": float(np.nanmean(one.ndcg)), "auc": float(one.auc.mean()), "seconds": one.seconds}
        if name != PLAIN and PLAIN in found:
            change = one.ndcg - found[PLAIN].ndcg
            row["ndcg_difference"] = [float(np.nanmean(change)), *map(float, bootstrap_interval(change, seed=0, samples=2000))]
            row["auc_difference"] = float((one.auc - found[PLAIN].auc).mean())
        out.append(row)
    return out


def table(found: dict[str, Outcome]) -> str:
    """Markdown."""
    lines = ["| | nDCG@10 | difference | AUC | difference | s / fold |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows(found):
        difference = "–"
        if "ndcg_difference" in row:
            value, low, high = row["ndcg_difference"]
            difference = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        area = f"{row['auc_difference']:+.3f}" if "auc_difference" in row else "–"
        lines.append(f"| {row['name']} | {row['ndcg']:.3f} | {difference} | {row['auc']:.3f} | {area} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def write(options: argparse.Namespace, found: dict[str, Outcome], machine: dict[str, Any], dataset: Dataset) -> None:
    """The report as JSON."""
    report = {
        "format": "edgerec-bench-techniques",
        "version": 1,
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "folds": options.folds,
        "seed": options.seed,
        "queries": len(found["BM25"].ndcg),
        "recipe": load_recipe(options.recipe).to_json(),
        "techniques": TECHNIQUES,
        "rows": rows(found),
        "date": utc_now(),
        "machine": machine,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1, default=dict) + "\n")


if __name__ == "__main__":
    main()
