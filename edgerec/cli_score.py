"""``edgerec score``: bulk scoring of a query log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .cli_output import EXISTING_FILE, EXISTING_FOLDER, NEW_FOLDER, as_json, counter, needs, show
from .errors import InputError

if TYPE_CHECKING:
    from .score_input import Requests


@click.command()
@click.argument("bundle", type=EXISTING_FOLDER)
@click.option(
    "--queries", required=True, type=click.Path(exists=True, path_type=Path), help="Query log: queries.jsonl, .gz, or a data folder."
)
@click.option("--catalog", required=True, type=EXISTING_FOLDER, help="A catalogue built for this bundle.")
@click.option("--candidates", type=EXISTING_FILE, help="Lists: JSON Lines of query_id and items, a TREC run, or a qrels .tsv; also .gz.")
@click.option("--first-stage", type=click.IntRange(min=1), metavar="N", help="BM25's best N of the data folder that --queries names.")
@click.option("--out", required=True, type=NEW_FOLDER, help="The folder to write.")
@click.option("--top-k", default=100, show_default=True, type=click.IntRange(min=1), help="Items to keep of a query.")
@click.option("--resume", is_flag=True, help="Go on from the parts that an earlier run has left in OUT.run.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that score.  [default: all processors; 1 for TensorRT]")
@click.option("--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]), help="Where: here, or on a cluster.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Engine threads of each.")
@click.option("--part-queries", default=256, show_default=True, type=click.IntRange(min=1), help="Queries in a part.")
@as_json
def score(
    bundle: Path,
    queries: Path,
    catalog: Path,
    candidates: Path | None,
    first_stage: int | None,
    out: Path,
    top_k: int,
    resume: bool,
    workers: int | None,
    engine: str,
    threads: int,
    part_queries: int,
    as_json: bool,
) -> None:
    """Rank the candidates of every query of a log, in bulk: OUT gets parts of JSON Lines and scores.json.

    Candidates are --candidates, or BM25's (--first-stage), or else all items of the catalogue. OUT appears when it is whole, with every
    query exactly once; until then parts lie in OUT.run, and --resume goes on there after a kill.

    \b
    Example:
      edgerec score bundle --catalog catalog --queries shop --first-stage 100 --out scores
      edgerec score bundle --catalog catalog --queries log.jsonl.gz --candidates run.trec --out scores --resume
    """
    from .bundle import read_manifest
    from .engine.machine import usable_cores
    from .score import score_queries
    from .score_input import read_requests

    if candidates is not None and first_stage is not None:
        raise click.UsageError("--candidates and --first-stage both give the candidates; give one")
    requests = read_requests(queries, candidates) if first_stage is None else _from_bm25(queries, first_stage)
    # Processes that share a GPU wait for each other, and each has its own plans and buffers there.
    usual = 1 if read_manifest(bundle).backend == "tensorrt" else usable_cores()
    with counter("queries", every=1) as progress:
        scores = score_queries(
            requests,
            bundle,
            catalog,
            out,
            top_k=top_k,
            part_queries=part_queries,
            threads=threads,
            workers=workers or usual,
            engine=engine,
            resume=resume,
            progress=progress,
        )
    totals = {name: scores[name] for name in ("queries", "ranked", "skipped", "degraded")}
    show({"out": str(out), "parts": len(scores["parts"]), **totals, "run": scores["run"]}, as_json=as_json)


def _from_bm25(folder: Path, n: int) -> Requests:
    """The queries of a data folder with the best `n` items that its BM25 finds."""
    from .score_input import Requests, query_file, read_log, sha256_of, with_lists

    if not folder.is_dir():
        raise InputError(f"--first-stage searches the corpus of a data folder; --queries names the file {folder}: name the folder")
    with needs("train"):
        from .training.data import load_dataset
        from .training.first_stage import Bm25

        dataset = load_dataset(folder)
        bm25 = Bm25(dataset)
    log = query_file(folder)
    settings = f"BM25 {bm25.fields} k1={bm25.k1} b={bm25.b} fold_plurals={bm25.fold_plurals}, best {n} of data {dataset.sha256}"

    def lists() -> Iterator[tuple[str, list[str]]]:
        for query_id, text in dataset.queries.items():
            yield query_id, [item_id for item_id, _ in bm25.search(text, n)]

    return Requests(with_lists(read_log(log), lists()), {"queries": sha256_of(log), "candidates": settings})
