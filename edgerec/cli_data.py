"""``edgerec data``: check, convert and generate data folders."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_output import EXISTING_FOLDER, NEW_FOLDER, as_json, needs, show


@click.group()
def data() -> None:
    """Check, convert and generate data folders (layout: docs/data.md)."""


@data.command()
@click.argument("folder", type=EXISTING_FOLDER)
@as_json
@click.pass_context
def validate(ctx: click.Context, folder: Path, as_json: bool) -> None:
    """Read the whole FOLDER and report counts, grades, duplicates, orphans and faults, each with file and line.

    Exit code 1 when there is an error; warnings alone pass.

    \b
    Example:
      edgerec data validate shop
    """
    from .training.validate import validate as run

    report = run(folder)
    if as_json:
        show(report.to_json(), as_json=True)
    else:
        click.echo(report.to_text())
    if report.errors:
        ctx.exit(1)


@data.command("import")
@click.argument("kind", type=click.Choice(["wands", "esci", "homedepot", "crowdflower"]))
@click.argument("source", type=EXISTING_FOLDER)
@click.argument("folder", type=NEW_FOLDER)
@click.option("--seed", default=0, show_default=True, help="Seed of the split by query, where the publisher made none.")
@click.option("--locale", default="us", show_default=True, type=click.Choice(["us", "es", "jp"]), help="esci only.")
@click.option("--small", is_flag=True, help="esci only: the reduced version.")
@as_json
def import_(kind: str, source: Path, folder: Path, seed: int, locale: str, small: bool, as_json: bool) -> None:
    """Convert a public data set, as its owner publishes it in SOURCE, to a data FOLDER.

    \b
    Example:
      edgerec data import wands WANDS/dataset wands
    """
    from dataclasses import asdict

    with needs("train"):
        from .training.importers import import_dataset

        report = import_dataset(kind, source, folder, seed=seed, locale=locale, small=small)
    show(asdict(report), as_json=as_json)


@data.command()
@click.argument("folder", type=EXISTING_FOLDER)
@click.argument("out", type=NEW_FOLDER)
@click.option(
    "--dev-share", default=0.2, show_default=True, type=click.FloatRange(0, 1, max_open=True), help="The latest requests, kept for dev."
)
@click.option("--eta", default=1.0, show_default=True, help="(1 / position) ** eta is the propensity where the log has none.")
@as_json
def labels(folder: Path, out: Path, dev_share: float, eta: float, as_json: bool) -> None:
    """Turn the behaviour log of FOLDER (events.jsonl) into OUT, a data folder whose grades are what users did.

    Robots and broken records are dropped, and counted by reason; position bias is divided out; train and dev are split by time.

    \b
    Example:
      edgerec data labels shop shop-behaviour
    """
    from .training.behaviour import write_behaviour_dataset

    report = write_behaviour_dataset(folder, out, dev_share=dev_share, eta=eta)
    if as_json:
        show(report.to_json(), as_json=True)
    else:
        click.echo(report.to_text())


@data.command()
@click.argument("folder", type=EXISTING_FOLDER)
@click.argument("out", type=NEW_FOLDER)
@click.option("--count", default=5, show_default=True, type=click.IntRange(min=2), help="How many folds.")
@click.option("--seed", default=0, show_default=True, help="Of the deal; same seed, same folds.")
@as_json
def folds(folder: Path, out: Path, count: int, seed: int, as_json: bool) -> None:
    """Deal the judged queries of FOLDER (train and dev) out to OUT/0, OUT/1, ...: each is once held out, as dev.

    \b
    Example:
      edgerec data folds shop shop-folds --count 5
    """
    from .training.folds import write_folds

    folders = write_folds(folder, out, count=count, seed=seed)
    show({"folds": [str(one) for one in folders], "seed": seed}, as_json=as_json)


@data.command()
@click.argument("folder", type=NEW_FOLDER)
@click.option("--items", default=2000, show_default=True, type=click.IntRange(min=1), help="Items in the corpus.")
@click.option("--queries", default=300, show_default=True, type=click.IntRange(min=1), help="Judged queries.")
@click.option("--users", default=100, show_default=True, type=click.IntRange(min=1), help="Users with a taste in brands and prices.")
@click.option("--events", default=5000, show_default=True, type=click.IntRange(min=0), help="Lines of behaviour log to simulate.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@as_json
def simulate(folder: Path, items: int, queries: int, users: int, events: int, seed: int, as_json: bool) -> None:
    """Generate a shop with known truth: items, judged queries, users and their behaviour.

    \b
    Example:
      edgerec data simulate shop --items 2000 --queries 300 --users 50 --events 5000 --seed 1
    """
    from .training.simulate import simulate as run

    run(folder, items=items, queries=queries, users=users, events=events, seed=seed)
    _describe(folder, as_json)


def _describe(folder: Path, as_json: bool) -> None:
    from .training.data import load_dataset

    loaded = load_dataset(folder)
    result = {
        "folder": str(folder),
        "items": len(loaded.items),
        "queries": len(loaded.queries),
        "judgements": {split: sum(map(len, judged.values())) for split, judged in loaded.qrels.items()},
        "sha256": loaded.sha256,
    }
    show(result, as_json=as_json)
