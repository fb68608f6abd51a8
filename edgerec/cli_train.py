"""``edgerec train``, ``distill``, ``export`` and ``evaluate``: the training half. Needs the extra ``train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .cli_output import EXISTING_FOLDER, NEW_FILE, NEW_FOLDER, as_json, command_line, dump, needs, on_terminal, show, write_text

data_folders = click.option("--data", "data", multiple=True, required=True, type=EXISTING_FOLDER, help="A data folder; may be repeated.")
embedder = click.option("--embedder", default="", help="Sentence-embedding model of the weak labels.  [default: train: --base-model]")
resume = click.option("--resume", is_flag=True, help="Go on from the last checkpoint under --out.")


@click.command()
@data_folders
@click.option("--base-model", required=True, help="A local folder in Hugging Face layout, or a hub name.")
@click.option("--recipe", required=True, type=click.Path(path_type=Path), help="A TOML file, or the name of a recipe that edgerec ships.")
@click.option("--out", required=True, type=NEW_FOLDER, help="The teacher's folder.")
@embedder
@resume
@as_json
def train(data: tuple[Path, ...], base_model: str, recipe: Path, out: Path, embedder: str, resume: bool, as_json: bool) -> None:
    """Fine-tune a cross-encoder teacher on graded judgements.

    \b
    Example:
      edgerec train --data shop --base-model models/minilm-l6 --recipe demo-teacher --out teacher
    """
    with needs("train"):
        from .training.config import load_recipe
        from .training.teacher import train_teacher

        settings = load_recipe(recipe)
        result = train_teacher(data, base_model, settings, out, embedder=embedder, resume=resume, progress=on_terminal())
    _show_trained(result if as_json else _summary(out, result), as_json=as_json)


def _show_trained(result: Mapping[str, Any], *, as_json: bool) -> None:
    """The result, and a warning where the model ranks a dev split worse than BM25 does. Of torchrun's processes the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    show(result, as_json=as_json)
    for name, first_stage in result["first_stage"].items():
        if (own := result["dev"][name]) < first_stage:
            worse = f"{name} is {own:.3f} on the dev split, BM25's is {first_stage:.3f}: this model would make rankings worse"
            click.echo(f"warning: {worse}; it wants more judgements, more steps, or a larger model", err=True)


def _summary(out: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a person wants to see of ``training.json``."""
    return {"folder": str(out)} | {key: result[key] for key in ("steps", "best_step", "dev", "first_stage")}


@click.command()
@click.option(
    "--teacher", "teachers", multiple=True, required=True, type=EXISTING_FOLDER, help="A folder of `edgerec train`; repeated: an ensemble."
)
@data_folders
@click.option("--student", required=True, type=click.Path(path_type=Path), help="The student's recipe: a TOML file, or a shipped name.")
@click.option("--out", required=True, type=NEW_FOLDER, help="The student's folder.")
@embedder
@resume
@as_json
def distill(
    teachers: tuple[Path, ...], data: tuple[Path, ...], student: Path, out: Path, embedder: str, resume: bool, as_json: bool
) -> None:
    """Train a small student on the scores of one or more teachers and on the judgements.

    \b
    Example:
      edgerec distill --teacher teacher --data shop --student demo-student --out student
    """
    with needs("train"):
        from .training.config import load_recipe
        from .training.distill import distill as run

        settings = load_recipe(student)
        result = run(teachers, data, settings, out, embedder=embedder, resume=resume, progress=on_terminal())
    _show_trained(result if as_json else _summary(out, result), as_json=as_json)


@click.command()
@click.argument("student", type=EXISTING_FOLDER)
@click.argument("out", type=NEW_FOLDER)
@click.option("--recipe", required=True, type=click.Path(path_type=Path), help="A TOML file with a [prune] table, or a shipped name.")
@data_folders
@click.option("--teacher", "teachers", multiple=True, type=EXISTING_FOLDER, help="Teaches the recovery.  [default: STUDENT as it was]")
@resume
@as_json
def prune(student: Path, out: Path, recipe: Path, data: tuple[Path, ...], teachers: tuple[Path, ...], resume: bool, as_json: bool) -> None:
    """Make a STUDENT physically smaller: heads, FFN columns, vocabulary; then train it to recover.

    \b
    Example:
      edgerec prune student student-pruned --recipe prune-l6 --data shop --teacher teacher
    """
    with needs("train"):
        from .training.config import load_recipe
        from .training.prune import prune as run

        result = run(student, data, load_recipe(recipe), out, teachers=teachers, resume=resume, progress=on_terminal())
    _show_trained(result if as_json else _summary(out, result) | {"pruning": result["pruning"]}, as_json=as_json)


@click.command("add-retrieval")
@click.argument("student", type=EXISTING_FOLDER)
@click.argument("out", type=NEW_FOLDER)
@data_folders
@click.option("--width", default=128, show_default=True, type=click.IntRange(1, 4096), help="Numbers of a vector: bytes of an item.")
@click.option(
    "--spans", default=20_000, show_default=True, type=click.IntRange(min=0), help="Queries made from the titles of each data set."
)
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
@as_json
def add_retrieval(student: Path, out: Path, data: tuple[Path, ...], width: int, spans: int, epochs: int, seed: int, as_json: bool) -> None:
    """Give a mid-fusion STUDENT what `Ranker.retrieve` needs, in the folder OUT: a vector for a query and for every item.

    Two linear maps are learned from relevant items and from spans of titles; the student itself stays as it is.

    \b
    Example:
      edgerec add-retrieval student student-retrieves --data shop
    """
    with needs("train"):
        from .training.retrieval import RetrievalSettings
        from .training.retrieval import add_retrieval as run

        result = run(student, out, data=data, settings=RetrievalSettings(width=width, spans=spans, epochs=epochs, seed=seed))
    show(result if as_json else {"folder": str(out), "retrieval": result["retrieval"]}, as_json=as_json)


@click.command()
@click.argument("student", type=EXISTING_FOLDER)
@click.argument("export", type=NEW_FOLDER)
@click.option("--data", "data", multiple=True, type=EXISTING_FOLDER, help="Data folder whose dev split gives the calibration sample.")
@click.option("--half", multiple=True, type=click.Choice(["fp16", "bf16"]), help="Also write the graph in half precision, for GPUs.")
@click.option(
    "--state-precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="How the catalogue keeps the item states of a mid-fusion student.  [default: the student's recipe]",
)
@as_json
def export(student: Path, export: Path, data: tuple[Path, ...], half: tuple[str, ...], state_precision: str | None, as_json: bool) -> None:
    """Write a STUDENT as an EXPORT folder: ONNX graph, tokenizer, model.json, calibration sample.

    The graph is compared with torch on several shapes before the folder appears.

    \b
    Example:
      edgerec export student student-export --data shop
    """
    with needs("train"):
        from .training.export import export_student

        result = export_student(student, export, data=data, half=half, state_precision=state_precision or "")
    summary = {"folder": str(export)} | {key: result.get(key) for key in ("name", "student", "dev_metrics", "export_check")}
    show(result if as_json else summary, as_json=as_json)


@click.command()
@click.option("--data", "data", required=True, type=EXISTING_FOLDER, help="The data folder to judge by.")
@click.option("--split", default="dev", show_default=True, help="The split: a file in FOLDER/qrels.")
@click.option("--model", "models", multiple=True, type=EXISTING_FOLDER, help="A teacher or student folder; may be repeated.")
@click.option("--bundle", "bundles", multiple=True, type=EXISTING_FOLDER, help="A bundle; may be repeated.")
@click.option("--min-judged", default=2, show_default=True, type=click.IntRange(min=1), help="Leave out queries with fewer judged items.")
@click.option("--latency", is_flag=True, help="Also time every model and bundle on 100 first-stage candidates a query.")
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap intervals.")
@click.option("--compare", nargs=2, metavar="A B", help="Two rows of the table: is B better than A, on which queries, and by chance?")
@click.option("--json", "json_file", type=NEW_FILE, help="Also write the table, and the comparison, as JSON to this file.")
@click.option("--report", type=NEW_FILE, help="Also write an HTML page with the tables and plots.")
def evaluate(
    data: Path,
    split: str,
    models: tuple[Path, ...],
    bundles: tuple[Path, ...],
    min_judged: int,
    latency: bool,
    seed: int,
    compare: tuple[str, str] | None,
    json_file: Path | None,
    report: Path | None,
) -> None:
    """Compare models and bundles with "no rerank" and BM25: nDCG@10, MRR@10, AUC with 95 % intervals.

    \b
    Example:
      edgerec evaluate --data shop --split dev --model teacher --bundle bundle --compare BM25 bundle --json table.json
    """
    for name in compare or ():
        if name not in ("BM25", *(text for folder in (*models, *bundles) for text in (folder.name, str(folder)))):
            raise click.BadParameter(f"{name!r} is neither BM25 nor the name of a --model or --bundle", param_hint="--compare")
    with needs("train"):
        from .training.compare import compare as compare_rows
        from .training.data import load_dataset
        from .training.evaluate import evaluate as run

        table = run(data, split, models=models, bundles=bundles, min_judged=min_judged, latency=latency, seed=seed, command=command_line())
        comparison = compare_rows(table, *compare, load_dataset(data), seed=seed) if compare else None
    if json_file is not None:
        more = {"comparison": comparison.to_json()} if comparison else {}
        write_text(json_file, dump(table.to_json() | more) + "\n")
    if report is not None:
        with needs("train"):
            from .training.report import write_report

            report.parent.mkdir(parents=True, exist_ok=True)
            write_report(table, report, comparison=comparison, title=f"{table.data}, split {table.split}")
    click.echo(table.to_markdown())
    if comparison is not None:
        click.echo(comparison.to_markdown())
