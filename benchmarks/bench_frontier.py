"""What does each rung of the ladder cost, and where does it lie between fast and good?

    python benchmarks/bench_frontier.py --base-model models/minilm-l6 --data crowdflower --work DIR [--only NAME ...]

Time: `Ranker.rank` over a catalogue of the data folder's items, for 100 and 1,000 candidates that BM25 finds (filled up with random ones),
another query every round, rungs taking turns, each as the int8 bundle of the default backend. The students have had one training step: they
have the sizes of those of bench_ladder.py, and no time depends on a weight's value. Quality: the rows of the same name in
``results/ladder.json``; the rivals' times are those of a report of bench_rank.py. Together they are a plot beside the report.
"""

from __future__ import annotations

import argparse
import itertools
import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_ladder import INT8, RUNGS, slug
from bench_rank import MAX_TOKENS, stand_in
from edgerec.training.config import load_recipe
from edgerec.training.data import Dataset, load_dataset
from edgerec.training.distill import distill
from edgerec.training.export import export_student
from edgerec.training.first_stage import Bm25
from edgerec.training.folder import new_folder, write_json, write_jsonl, write_qrels
from edgerec.training.plot import COLOURS, SOFT, draw_svg
from edgerec.training.prune import prune
from turns import describe_machine, ratio, report, table, take_turns

from edgerec import Ranker
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog

RESULTS = Path(__file__).parent / "results"
CANDIDATES = (100, 1000)
SAME_SHAPE = ("L3 without unjudged pairs", "L3 without first-stage pairs", "L6 with the shop's tokens")
"""Rungs that cost what another one does."""
Request = tuple[str, list[str]]


def main() -> None:
    """Make the rungs, time them, print the table, write report and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the rungs are kept")
    parser.add_argument(
        "--only", action="append", choices=list(RUNGS), help="repeatable; the first is what the others are measured against"
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="of the students; bench_engine.py wants more")
    parser.add_argument("--rivals", type=Path, default=RESULTS / "rank.json", help="a report of bench_rank.py from the same machine")
    parser.add_argument("--out", type=Path, default=RESULTS / "frontier.json")
    options = parser.parse_args()
    machine, dataset = describe_machine(), load_dataset(options.data)
    names = options.only or [name for name in RUNGS if name not in SAME_SHAPE]
    few = few_queries(dataset, options.work / "few")
    teacher = stand_in(options.base_model, options.work / "teacher", options.seed, max_tokens=options.max_tokens)
    bundles = {name: bundle_of(name, teacher, few, options) for name in names}
    with ExitStack() as stack:
        rankers = {name: stack.enter_context(open_ranker(bundles[name], dataset, options.threads)) for name in names}
        rows = [row for count in CANDIDATES for row in timed(rankers, requests(dataset, count, options.seed), count, options.rounds)]
    quality = {one["name"]: one for one in json.loads((RESULTS / "ladder.json").read_text())["rows"]}
    for row in rows:
        row["ndcg"] = quality.get(row["rung"] + INT8, {}).get("ndcg")
    print(table(rows))
    teacher_ndcg = next(one["ndcg"] for name, one in quality.items() if name.startswith("teacher"))
    others = [one for one in json.loads(options.rivals.read_text())["contestants"] if not one["name"].startswith("edgerec")]
    draw = partial(plot, rows, quality["BM25"]["ndcg"], others, teacher_ndcg)
    options.out.with_suffix(".svg").write_text(draw_svg(draw) + "\n", encoding="utf-8")
    report("edgerec-bench-frontier", machine, ("numpy",), {"threads": options.threads, "rounds": options.rounds, "rows": rows}, options.out)


def few_queries(dataset: Dataset, out: Path) -> Path:
    """A data folder of the same items in which a handful of queries are judged."""
    if out.exists():
        return out
    with new_folder(out) as folder:
        write_json(folder / "dataset.json", {"name": "few", "grades": {"min": dataset.grade_min, "max": dataset.grade_max}})
        write_jsonl(folder / "corpus.jsonl", ({"_id": item.id, "title": item.title, "text": item.text} for item in dataset.items.values()))
        write_jsonl(folder / "queries.jsonl", ({"_id": key, "text": text} for key, text in dataset.queries.items()))
        write_qrels(folder, {split: itertools.islice(judged(dataset, split), 64) for split in ("train", "dev")})
    return out


def judged(dataset: Dataset, split: str) -> Any:
    """(query, item, grade) of a split, in file order."""
    return ((query, item, grade) for query, grades in dataset.qrels[split].items() for item, grade in grades.items())


def bundle_of(name: str, teacher: Path, few: Path, options: argparse.Namespace) -> Path:
    """The rung after one training step, built."""
    student, export, bundle = (options.work / f"{slug(name)}{what}" for what in ("", "-export", "-int8"))
    rung = RUNGS[name]
    recipe = load_recipe(Path(rung.recipe))
    fit = replace(recipe.fit, epochs=1, max_steps=1, passes={})
    if not student.exists():
        if name == "L6 pruned":
            bundle_of("L6", teacher, few, options)
            sizes = replace(recipe.prune, vocabulary=False, batches=1)
            plain = replace(recipe.student, unlabelled_per_query=0, span_queries=0)
            prune(options.work / "l6", [few], replace(recipe, fit=fit, prune=sizes, student=plain), student, teachers=[teacher])
        else:
            plain = replace(recipe.student, **{**rung.general, "unlabelled_per_query": 0, "span_queries": 0})
            distill(teacher, [few], replace(recipe, fit=fit, student=plain), student)
    if not export.exists():
        export_student(student, export, data=[few])
    if not bundle.exists():
        build_engine(export, bundle, precision="int8", gate={"ndcg_drop": 1.0, "tau": 0.0})
    return bundle


def open_ranker(bundle: Path, dataset: Dataset, threads: int) -> Ranker:
    """The bundle over a catalogue of all items."""
    catalog = bundle.with_name(bundle.name + "-catalog")
    if not catalog.exists():
        build_catalog(dataset.items.values(), bundle, catalog)
    return Ranker.open(bundle, catalog=catalog, threads=threads)


def requests(dataset: Dataset, count: int, seed: int) -> list[Request]:
    """The dev queries in random order, each with ``count`` ids."""
    bm25, rng, everything = Bm25(dataset), np.random.default_rng(seed), list(dataset.items)
    found = []
    for query in rng.permutation(list(dataset.qrels["dev"])).tolist():
        ids = dict.fromkeys(item for item, _ in bm25.search(dataset.queries[query], count))
        ids |= dict.fromkeys(everything[i] for i in rng.permutation(len(everything))[: 2 * count].tolist())
        found.append((dataset.queries[query], list(ids)[:count]))
    return found


def timed(rankers: dict[str, Ranker], asked: list[Request], count: int, rounds: int) -> list[dict[str, Any]]:
    """A row a rung."""

    def answer(ranker: Ranker, request: Request) -> object:
        return ranker.rank(*request)

    times = take_turns({name: partial(answer, ranker) for name, ranker in rankers.items()}, asked, rounds=rounds)
    first = next(iter(rankers))
    return [
        {
            "rung": name,
            "backend": rankers[name].manifest.backend,
            "candidates": count,
            "p50_ms": float(np.percentile(found, 50)) / 1e6,
            "p99_ms": float(np.percentile(found, 99)) / 1e6,
            "of_the_first": ratio(times, name, first),
        }
        for name, found in times.items()
    ]


def plot(rows: list[dict[str, Any]], bm25: float, rivals: list[dict[str, Any]], teacher: float, axes: Any) -> None:
    """nDCG against time, a line from 100 to 1,000 candidates for each rung whose quality is known; rivals run the teacher, at 100."""

    def name(text: str, x: float, y: float, offset: tuple[float, float], **style: Any) -> None:
        axes.annotate(text, (x, y), offset, textcoords="offset points", **style)

    for place, one in enumerate(sorted(rivals, key=lambda one: float(one["p50_ms"]))):
        axes.plot([one["p50_ms"]], [teacher], marker="x", color=SOFT)
        name(one["name"], one["p50_ms"], teacher, (4, 6 + 12 * place), color=SOFT, fontsize=8)
    known = sorted((row for row in rows if row["ndcg"] is not None), key=lambda row: (row["rung"], row["candidates"]))
    for number, (rung, found) in enumerate(itertools.groupby(known, lambda row: str(row["rung"]))):
        points = list(found)
        times, ndcg = [row["p50_ms"] for row in points], points[0]["ndcg"]
        colour = COLOURS["teacher"] if "mid" in rung else COLOURS["bundle"]
        axes.plot(times, [ndcg for _ in times], marker="o", color=colour)
        # Students of the two kinds lie close together: the names of one stand left of its lines, of the other below.
        if "mid" in rung:
            name(f"{rung} {ndcg:.3f}", times[0], ndcg, (-8, -4), color=colour, ha="right")
        else:
            name(f"{rung} {ndcg:.3f}", times[-1], ndcg, (0, -16 - 13 * (1 - number % 2)), color=colour, ha="right")
    axes.axhline(bm25, color=COLOURS["baseline"], linewidth=1.2, linestyle=(0, (5, 3)))
    axes.annotate(f"BM25 {bm25:.3f}", (0, bm25), (4, 4), xycoords=("axes fraction", "data"), textcoords="offset points", color=SOFT)
    axes.set_xscale("log")
    axes.set_xlabel("p50 milliseconds, 100 candidates to 1,000 (log scale, left is faster)", color=SOFT)
    axes.set_ylabel("nDCG@10", color=SOFT)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.32, y=0.25)


if __name__ == "__main__":
    main()
