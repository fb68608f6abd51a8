"""``edgerec build-engine``, ``build-catalog``, ``rank``, ``bench``, ``inspect`` and ``verify``: everything on the serving machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from .cli_gpu import explain_plans, gpu_options, read_gpu
from .cli_output import EXISTING_FILE, EXISTING_FOLDER, NEW_FOLDER, as_json, command_line, counter, needs, show
from .errors import InputError

if TYPE_CHECKING:
    from .types import Item, UserProfile

threads = click.option("--threads", type=click.IntRange(min=1), help="Engine threads.  [default: the processors this process may use]")


@click.command("build-engine")
@click.argument("export", type=EXISTING_FOLDER)
@click.argument("bundle", type=NEW_FOLDER)
@click.option(
    "--backend",
    type=click.Choice(["native", "ort", "reference", "tensorrt"]),
    help="What will run the model.  [default: native where it runs the student, else ort]",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8"]),
    help="Arithmetic of the engine; bf16 on native and TensorRT, fp16 and fp8 on TensorRT.",
)
@click.option(
    "--activations",
    default="token",
    show_default=True,
    type=click.Choice(["token", "batch", "static"]),
    help="For int8 on ort: what has a range of its own, at run time or (static) calibrated.",
)
@click.option("--ndcg-drop", type=float, help="Gate: how much nDCG@10 may be lost.  [default: the model's recipe, or the builder's]")
@click.option("--top-overlap", type=float, help="Gate: the least share of the top rows that stay on top.")
@click.option("--tau", type=float, help="Gate: the least Kendall tau.")
@click.option("--nan-count", type=int, help="Gate: how many logits may be NaN.")
@gpu_options
@as_json
def build_engine(
    export: Path,
    bundle: Path,
    backend: str | None,
    precision: str,
    activations: str,
    ndcg_drop: float | None,
    top_overlap: float | None,
    tau: float | None,
    nan_count: int | None,
    as_json: bool,
    **gpu: Any,
) -> None:
    """Build the BUNDLE of an EXPORT folder for this machine.

    The built engine is compared with the fp32 graph on the calibration queries: logits, top-k overlap, nDCG@10, Kendall tau, NaN. Beyond a
    gate the exit code is 1 and no bundle is written.

    \b
    Example:
      edgerec build-engine student-export bundle --precision int8
      edgerec build-engine student-export gpu-bundle --backend tensorrt --precision fp16 --buckets 32x32,128x64
    """
    with needs("build"):
        from .builder import build_engine as run

        given = {"ndcg_drop": ndcg_drop, "top_overlap": top_overlap, "tau": tau, "nan_count": nan_count}
        gate = {name: bound for name, bound in given.items() if bound is not None}
        options = read_gpu(backend, **gpu)
        report = run(export, bundle, backend=backend, precision=precision, activations=activations, gate=gate, gpu=options)
    show(report.to_json(), as_json=as_json)


@click.command("build-catalog")
@click.argument("corpus", type=EXISTING_FILE)
@click.argument("bundle", type=EXISTING_FOLDER)
@click.argument("catalog", type=NEW_FOLDER)
@click.option("--previous", type=EXISTING_FOLDER, help="A catalogue for the same model: unchanged items are copied from it.")
@click.option("--resume", is_flag=True, help="Go on from what an earlier run has left in CATALOG.run; keep it if this one fails.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Processes that encode items.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(["local", "ray"]),
    help="Where they work: here, or on a cluster.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Engine threads of each.  [default: all processors; 1 with several workers]")
@as_json
def build_catalog(
    corpus: Path,
    bundle: Path,
    catalog: Path,
    previous: Path | None,
    resume: bool,
    workers: int,
    engine: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Tokenise and hash every item of CORPUS (corpus.jsonl or .gz) once, for one BUNDLE, into a memory-mapped CATALOG.

    For a mid-fusion student every item is encoded, too: its states are stored. Other students use no threads here.

    \b
    Example:
      edgerec build-catalog shop/corpus.jsonl bundle catalog
      edgerec build-catalog shop/corpus.jsonl bundle catalog-2 --previous catalog --workers 4
    """
    from .catalog import build_catalog as run
    from .corpus import read_items

    with counter("items") as progress:
        info = run(
            read_items(corpus),
            bundle,
            catalog,
            progress=progress,
            threads=threads,
            workers=workers,
            engine=engine,
            resume=resume,
            previous=previous,
        )
    show({**info.to_json(), "bytes_per_item": round(info.bytes_per_item, 1)}, as_json=as_json)


@click.command()
@click.argument("bundle", type=EXISTING_FOLDER)
@click.option("--catalog", type=EXISTING_FOLDER, help="A catalogue built for this bundle; needed for candidates given by id.")
@click.option("--query", required=True, help="The search text.")
@click.option("--candidates", type=click.File(encoding="utf-8"), help="A line each: an item id, or an item as in corpus.jsonl. - is stdin.")
@click.option("--top-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many to return.")
@click.option("--user", help='What is known of the searcher, e.g. {"brands": {"acme": 0.8}}.')
@click.option("--context", multiple=True, metavar="KEY=VALUE", help="A context field; may be repeated.")
@click.option("--deadline-ms", type=click.FloatRange(min=0), help="Score nothing more after so many milliseconds.  [default: no limit]")
@click.option("--second", type=EXISTING_FOLDER, metavar="BUNDLE", help="A second student, which scores the best again.")
@click.option("--second-n", default=100, show_default=True, type=click.IntRange(min=1), help="How many the second student scores.")
@click.option("--second-catalog", type=EXISTING_FOLDER, help="The second student's catalogue.  [default: that of --catalog]")
@threads
@as_json
def rank(
    bundle: Path,
    catalog: Path | None,
    query: str,
    candidates: TextIO | None,
    top_k: int,
    user: str | None,
    context: tuple[str, ...],
    deadline_ms: float | None,
    second: Path | None,
    second_n: int,
    second_catalog: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Rank candidates for one query. Without --candidates, every item of the catalogue is a candidate.

    \b
    Example:
      edgerec rank bundle --catalog catalog --query "red lamp" --candidates ids.txt --top-k 5
    """
    from .catalog import Catalog
    from .ranker import Ranker
    from .ranker_cascade import Cascade

    if second_catalog is not None and second is None:
        raise click.UsageError("--second-catalog is of --second, which is not given")
    if candidates is not None:
        listed = _read_candidates(candidates)
    elif catalog is not None:
        listed = [*Catalog.open(catalog).ids()]
    else:
        raise click.UsageError("give --catalog, or --candidates with whole items, or both")
    profile, fields = _read_user(user), _read_context(context)
    with ExitStack() as opened:
        first = opened.enter_context(Ranker.open(bundle, catalog=catalog, threads=threads))
        ranker: Ranker | Cascade = first
        if second is not None:
            again = opened.enter_context(Ranker.open(second, catalog=second_catalog or catalog, threads=threads))
            ranker = Cascade(first, again, n=second_n)
        result = ranker.rank(query, listed, top_k=top_k, user=profile, context=fields, deadline_ms=deadline_ms)
    scores = [None if math.isnan(score) else score for score in result.scores.tolist()]  # no score: there was no time
    if as_json:
        show(
            {
                "results": [{"id": i, "score": s} for i, s in zip(result.ids, scores, strict=True)],
                "skipped": [{"id": i, "reason": why} for i, why in result.skipped],
                "degraded": result.degraded,
                "reason": result.reason,
                "timings_us": dict(result.timings_us),
                "model_version": result.model_version,
            },
            as_json=True,
        )
        return
    for place, (item_id, score) in enumerate(zip(result.ids, scores, strict=True), 1):
        click.echo(f"{place:>3}  {'-' if score is None else f'{score:.4f}':>9}  {item_id}")
    for item_id, why in result.skipped:
        click.echo(f"skipped {item_id}: {why}", err=True)
    if result.degraded:
        click.echo(f"degraded: {result.reason}", err=True)


@click.command()
@click.argument("bundle", type=EXISTING_FOLDER)
@click.option("--data", required=True, type=EXISTING_FOLDER, help="Data folder that gives the queries and the items.")
@click.option(
    "--candidates", multiple=True, type=click.IntRange(min=1), help="Candidates a query; may be repeated.  [default: 10 100 1000]"
)
@click.option("--repeat", default=200, show_default=True, type=click.IntRange(min=1), help="Timed calls for each number of candidates.")
@threads
@as_json
def bench(bundle: Path, data: Path, candidates: tuple[int, ...], repeat: int, threads: int | None, as_json: bool) -> None:
    """Time a BUNDLE on real queries and items: p50, p95, p99 by number of candidates, stage by stage.

    \b
    Example:
      edgerec bench bundle --data shop --json
    """
    from .bench import bench as run
    from .training.data import load_dataset

    loaded = load_dataset(data)
    queries, items = list(loaded.queries.values()), list(loaded.items.values())
    sizes = candidates or (10, 100, 1000)
    report = run(bundle, queries=queries, items=items, candidates=sizes, repeat=repeat, threads=threads, command=command_line())
    if as_json:
        show(report.to_json(), as_json=True)
    else:
        click.echo(report.to_markdown())


@click.command()
@click.argument("bundle", type=EXISTING_FOLDER)
@as_json
def inspect(bundle: Path, as_json: bool) -> None:
    """Say what a BUNDLE is: model, backend, precision, the machine it was built on, files, parity.

    Only the small JSON files are checked against their hashes; `edgerec verify` checks all.

    \b
    Example:
      edgerec inspect bundle
    """
    from .bundle import describe

    show(describe(bundle), as_json=as_json)


@click.command()
@click.argument("bundle", type=EXISTING_FOLDER)
@as_json
def verify(bundle: Path, as_json: bool) -> None:
    """Check every file of a BUNDLE against its manifest, size and sha256, and reproduce the golden feature vectors.

    Of a TensorRT bundle it says which plan runs here, or why none does and how to build one.

    \b
    Example:
      edgerec verify bundle
    """
    from .bundle import read_json, verify_bundle
    from .features import FeatureSpec, check_golden

    manifest = verify_bundle(bundle)
    features = read_json(bundle, manifest, "features.json")
    if features is not None:
        check_golden(FeatureSpec.from_json(features))
    result = {"bundle": str(bundle), "model_version": manifest.model_version, "files": len(manifest.files), "ok": True}
    if manifest.backend == "tensorrt":
        result |= {"tensorrt": explain_plans(bundle, manifest)}
    show(result, as_json=as_json)


def _read_candidates(lines: TextIO) -> list[str | Item]:
    from .corpus import item_from_record

    found: list[str | Item] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        place = f"{lines.name}:{number}"
        found.append(item_from_record(_object(text, place), place) if text.startswith("{") else text)
    return found


def _read_user(text: str | None) -> UserProfile | None:
    from .score_input import user_from_record

    return None if text is None else user_from_record(_object(text, "--user"), "--user")


def _read_context(pairs: tuple[str, ...]) -> Mapping[str, str] | None:
    split = [pair.partition("=") for pair in pairs]
    wrong = [pair for pair, (_, equals, _) in zip(pairs, split, strict=True) if not equals]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not KEY=VALUE", param_hint="--context")
    return {key: value for key, _, value in split} or None


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected a JSON object, found {type(value).__name__}")
    return value
