"""``edgerec score``: a whole query log through `Ranker.rank`, on all cores or a cluster, into parts that hold every query exactly once."""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import __version__
from .bundle import read_manifest
from .catalog import Catalog
from .catalog_info import CatalogInfo
from .crew import Crew, check_crew, work_elsewhere, work_here
from .errors import BundleError, EngineError, InputError
from .machine import utc_now
from .manifest import MANIFEST
from .ranker import Ranker
from .score_input import Request, Requests, digest_of, sha256_of
from .score_parts import Part, RunFolder, run_folder
from .types import RankedList

PART_QUERIES = 256
"""Seconds to a minute of work: what a kill costs, and what one task of a worker is."""

Queries = Sequence[Request]


def score_queries(
    requests: Requests,
    bundle: str | os.PathLike[str],
    catalog: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    top_k: int = 100,
    part_queries: int = PART_QUERIES,
    threads: int = 1,
    workers: int = 1,
    engine: str = "local",
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Rank the candidates of every query, and write the folder `out`: parts of JSON Lines, and ``scores.json``.

    What is written is what ``Ranker.open(bundle, catalog=catalog, threads=threads).rank`` returns, to the bit, for any `workers`, `engine`
    and `part_queries`, on machines of one kind: how an engine rounds depends on the processor's instructions.

    The catalogue is scored as it is when the run begins. Workers that are open keep that generation whatever a writer publishes; one that
    opens it later than a change is refused, and so is a resumed run.

    Parameters
    ----------
    requests : of `read_requests`, or your own; of these, some parts are in memory at once.
    top_k : items to keep of a query.
    part_queries : queries in a part.
    threads : of each worker's ranker. ONNX Runtime's batches, and so its last bits, depend on it.
    workers : processes. With more than one a program must guard its main module, as `multiprocessing` asks.
    engine : ``local``, or ``ray``: as `build_catalog`; the catalogue must lie at the same path on each machine of the cluster.
    resume : go on from the parts that an earlier run has left in ``OUT.run``.
    progress : called with the number of queries done, after every part.

    Returns
    -------
    ``scores.json``.

    Raises
    ------
    InputError : a wrong argument or request, no request, `out` exists, or what is to be resumed is a run of other data, of another model,
        catalogue, or with other settings (they are named).
    BundleError : the bundle or the catalogue is damaged, they do not belong together, or a worker does not find this catalogue.
    EngineError : the engine cannot be loaded, or fails; a worker died; there is no cluster.
    MissingExtraError : `engine` is ``ray``, and ray is not installed.
    """
    check_crew(workers, engine)
    for what, value in (("top_k", top_k), ("part_queries", part_queries), ("threads", threads)):
        if value < 1:
            raise InputError(f"{what} is {value}; expected at least 1")
    root, target, place = Path(bundle), Path(out), Path(catalog).resolve()
    info = Catalog.open(place).info
    run = describe_run(requests, root, info, top_k=top_k, part_queries=part_queries, threads=threads)
    opener = partial(open_scorer, catalog=place, expected=info, top_k=top_k, threads=threads)
    try:
        with run_folder(target, resume) as folder:
            folder.begin(run)
            with _crew(opener, root, engine, workers, threads) as crew:
                done = 0
                for part in _write_parts(_cut(requests.rows, part_queries), folder, crew):
                    folder.parts.append(part)
                    done += part.queries
                    if progress is not None:
                        progress(done)
            if not folder.parts:
                raise InputError("there are no queries to score")
            return folder.publish(target, run, utc_now())
    except OSError as e:
        raise InputError(f"{target}: the scores could not be written: {e}; go on with resume") from e


def describe_run(requests: Requests, bundle: Path, info: CatalogInfo, *, top_k: int, part_queries: int, threads: int) -> dict[str, Any]:
    """All that the scores depend on. Raises BundleError."""
    manifest = read_manifest(bundle)
    return {
        "edgerec": __version__,
        "model": {
            "model_version": manifest.model_version,
            "backend": manifest.backend,
            "precision": manifest.precision,
            "manifest_sha256": sha256_of(bundle / MANIFEST),
        },
        "catalog": {
            "content_id": info.content_id,
            "generation": info.generation,
            "items": info.items,
            "sha256": digest_of(info.to_json()),
        },
        "source": dict(requests.source),
        "top_k": top_k,
        "part_queries": part_queries,
        "threads": threads,
    }


@dataclass(frozen=True, slots=True)
class PartScorer:
    """Makes parts of queries: one line of JSON for each request, in order. Of one worker; opened by `open_scorer`."""

    ranker: Ranker
    top_k: int

    def __call__(self, requests: Queries) -> bytes:
        """Errors as of `Ranker.rank`, with the query's id."""
        everything: list[str] | None = None
        lines = []
        for request in requests:
            candidates: Sequence[str] | None = request.candidates
            if candidates is None:
                assert self.ranker.catalog is not None
                candidates = everything = self.ranker.catalog.ids() if everything is None else everything
            try:
                found = self.ranker.rank(request.query, candidates, top_k=self.top_k, user=request.user, context=request.context)
            except InputError as e:
                raise InputError(f"query {request.id!r:.80}: {e}") from e
            lines.append(_line(request.id, found))
        return b"".join(lines)


def open_scorer(bundle: Path, *, catalog: Path, expected: CatalogInfo, top_k: int, threads: int) -> PartScorer:
    """What a worker does first.

    Raises
    ------
    BundleError : the catalogue is not there, or is another than the run began with. Others as of `Ranker.open`.
    """
    try:
        opened = Catalog.open(catalog).pin()
    except BundleError as e:
        raise BundleError(f"on {platform.node()}: {e}; the catalogue must lie at the same path on every machine that scores") from e
    if opened.info != expected:
        raise BundleError(
            f"on {platform.node()}: {catalog} is generation {opened.info.generation} with {opened.info.items} items, the run began with "
            f"generation {expected.generation} with {expected.items}; score a copy that nobody writes to, and begin again"
        )
    return PartScorer(Ranker.open(bundle, catalog=opened, threads=threads), top_k)


def _line(query_id: str, found: RankedList) -> bytes:
    line = {"query_id": query_id, "ids": found.ids, "scores": found.scores.tolist(), "skipped": found.skipped}
    if found.degraded:
        line["reason"] = found.reason
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError as e:
        raise InputError(f"query {query_id!a:.80}: an id holds a lone surrogate, which is no text ({e.reason})") from e
    except ValueError as e:
        raise EngineError(f"query {query_id!r:.80}: a score is infinite, which JSON cannot say; the engine's arithmetic overflowed") from e


@contextmanager
def _crew(opener: Callable[[Path], PartScorer], bundle: Path, engine: str, workers: int, threads: int) -> Iterator[Crew[Queries, bytes]]:
    if engine == "local" and workers == 1:
        scorer = opener(bundle)
        with closing(scorer.ranker), work_here(scorer) as crew:
            yield crew
        return
    with work_elsewhere(opener, bundle, engine=engine, workers=workers, threads=threads, what="score queries") as crew:
        yield crew


def _cut(rows: Iterable[Request], size: int) -> Iterator[list[Request]]:
    source, seen = iter(rows), set[str]()
    while part := list(itertools.islice(source, size)):
        for request in part:
            if request.id in seen:
                raise InputError(f"query {request.id!r:.80} came twice; each is scored once")
            seen.add(request.id)
        yield part


def _write_parts(parts: Iterable[list[Request]], folder: RunFolder, crew: Crew[Queries, bytes]) -> Iterator[Part]:
    """Make the parts that are not there yet; yields all, in order."""

    def planned() -> Iterator[tuple[tuple[int, list[str], Part | None], Queries | None]]:
        for number, requests in enumerate(parts):
            query_ids = [request.id for request in requests]
            found = folder.find(number, query_ids)
            yield (number, query_ids, found), None if found else requests

    for (number, query_ids, found), data in crew.map(planned()):
        if found is not None:
            yield found
        elif data is not None:
            yield folder.write(number, data, query_ids)
