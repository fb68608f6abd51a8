"""``edgerec bench``: how long one request takes, by number of candidates and stage by stage. On your queries and items, on this machine."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from .catalog import build_catalog
from .errors import InputError
from .machine import describe_machine, installed_versions, utc_now
from .ranker import Ranker
from .types import Item

STAGES = ("lookup", "encode", "score", "select")
PACKAGES = ("edgerec", "numpy", "onnxruntime", "tokenizers")


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a duration over all calls, in microseconds."""

    p50_us: float
    p95_us: float
    p99_us: float

    @classmethod
    def of(cls, durations_us: Sequence[float]) -> Percentiles:
        """From at least one duration."""
        return cls(*(float(p) for p in np.percentile(durations_us, (50, 95, 99))))

    def to_json(self) -> dict[str, float]:
        """To a tenth of a microsecond."""
        return {"p50_us": round(self.p50_us, 1), "p95_us": round(self.p95_us, 1), "p99_us": round(self.p99_us, 1)}


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Requests with one number of candidates.

    Attributes
    ----------
    total : of the whole call, timed from outside.
    overhead : total minus score: all that is not the engine. Its percentiles are taken call by call, so they are not differences of
        the others.
    stages : ``lookup encode score select``, as the ranker reports them.
    """

    candidates: int
    calls: int
    total: Percentiles
    overhead: Percentiles
    stages: Mapping[str, Percentiles]

    def to_json(self) -> dict[str, Any]:
        """Microseconds."""
        stages = {name: self.stages[name].to_json() for name in STAGES}
        return {
            "candidates": self.candidates,
            "calls": self.calls,
            "total": self.total.to_json(),
            "overhead": self.overhead.to_json(),
            "stages": stages,
        }


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was timed, and where.

    Attributes
    ----------
    provenance : ``queries items top_k threads seed command date machine versions``.
    """

    model_version: str
    rows: tuple[BenchRow, ...]
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Microseconds, with the machine and the date."""
        return {
            "format": "edgerec-bench",
            "version": 1,
            "model_version": self.model_version,
            "rows": [row.to_json() for row in self.rows],
            "provenance": dict(self.provenance),
        }

    def to_markdown(self) -> str:
        """One line for each number of candidates, in milliseconds; stages and overhead are medians."""
        header = ["candidates", "p50 ms", "p95 ms", "p99 ms", *STAGES, "overhead"]
        lines = [header]
        for row in self.rows:
            totals = (row.total.p50_us, row.total.p95_us, row.total.p99_us)
            medians = (*(row.stages[name].p50_us for name in STAGES), row.overhead.p50_us)
            lines.append([f"{row.candidates:,}", *(f"{us / 1000:.2f}" for us in totals), *(f"{us / 1000:.3f}" for us in medians)])
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        text = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
        text.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
        p, machine = self.provenance, self.provenance["machine"]
        threads = "all usable cores" if p["threads"] is None else f"{p['threads']} threads"
        caption = (
            f"{self.model_version}, {self.rows[0].calls:,} warm calls for each line, {p['queries']:,} queries, {p['items']:,} items, top "
            f"{p['top_k']}, {threads}. Stages and overhead (total minus score) are medians.\n"
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load_1min']}; {p['date']}; `{p['command']}`"
        )
        return "\n".join([*text, "", caption, ""])


def bench(
    bundle: Path,
    *,
    queries: Sequence[str],
    items: Sequence[Item],
    candidates: Sequence[int] = (10, 100, 1000),
    repeat: int = 200,
    warm_up: int = 10,
    top_k: int = 10,
    threads: int | None = None,
    seed: int = 0,
    command: str | None = None,
) -> BenchReport:
    """Time ``Ranker.rank`` over a catalogue of the items.

    Every call has another query (as far as there are enough) and other candidates, drawn at random from the items before the clock
    starts. The sizes take turns, call by call, so that a busy moment of the machine hits all of them.

    Parameters
    ----------
    bundle : folder written by ``edgerec build-engine``.
    queries, items : real ones; lengths decide the cost. Items need distinct ids.
    candidates : sizes to time; one above the number of items becomes that number.
    repeat : timed calls for each size; p99 of fewer than 100 calls is their slowest or nearly so.
    warm_up : untimed calls for each size before.
    threads : of the engine; None: the cores this process may use.
    seed : of the draw; same seed, same requests.
    command : for the provenance; by default this process's command line.

    Raises
    ------
    InputError : no queries, no items, or a number below 1.
    BundleError, EngineError : the bundle cannot be opened.
    """
    if not queries or not items:
        raise InputError(f"bench needs queries and items; got {len(queries)} and {len(items)}")
    if not candidates or min(*candidates, repeat, top_k) < 1 or warm_up < 0:
        raise InputError(f"candidates, repeat and top_k must be at least 1; got {tuple(candidates)}, {repeat}, {top_k}")
    machine = describe_machine()  # first: the load it reports should be that of others
    sizes = sorted({min(size, len(items)) for size in candidates})
    ids = [item.id for item in items]
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="edgerec-bench-") as work:
        catalog = Path(work) / "catalog"
        build_catalog(items, bundle, catalog)
        with Ranker.open(bundle, catalog=catalog, threads=threads) as ranker:
            times: dict[int, list[Mapping[str, float]]] = {size: [] for size in sizes}
            for call in range(warm_up + repeat):
                for size in sizes:
                    chosen = [ids[i] for i in rng.choice(len(ids), size, replace=False).tolist()]
                    timed = _one_call(ranker, queries[int(rng.integers(len(queries)))], chosen, top_k)
                    if call >= warm_up:
                        times[size].append(timed)
            version = ranker.manifest.model_version
    return BenchReport(
        model_version=version,
        rows=tuple(_summary(size, calls) for size, calls in times.items()),
        provenance={
            "queries": len(queries),
            "items": len(items),
            "top_k": top_k,
            "threads": threads,
            "seed": seed,
            "command": shlex.join(sys.argv) if command is None else command,
            "date": utc_now(),
            "machine": machine,
            "versions": installed_versions(PACKAGES),
        },
    )


def _one_call(ranker: Ranker, query: str, candidates: list[str], top_k: int) -> Mapping[str, float]:
    """Stage timings of one call, in microseconds, with the total taken from outside."""
    start = perf_counter_ns()
    result = ranker.rank(query, candidates, top_k=top_k)
    return {**result.timings_us, "total": (perf_counter_ns() - start) / 1000}


def _summary(size: int, calls: Sequence[Mapping[str, float]]) -> BenchRow:
    return BenchRow(
        candidates=size,
        calls=len(calls),
        total=Percentiles.of([call["total"] for call in calls]),
        overhead=Percentiles.of([call["total"] - call["score"] for call in calls]),
        stages={name: Percentiles.of([call[name] for call in calls]) for name in STAGES},
    )
