"""How long until a changed item can be ranked, and what do changes cost those who rank meanwhile?

    python benchmarks/bench_upsert.py BUNDLE --items 100000 --out benchmarks/results/upsert.json

A catalogue of generated items (those of bench_catalog.py). `upsert ms` is the time of a call with `--batch` items, one thread, nothing else
at work; `rankable ms` that of the call and of the first request that ranks one of them, in the same process.

Then rounds: some requests alone, and as many while a process of its own changes items, `--batch` of them `--rate` times a second; which
comes first changes from round to round. A request ranks 100 of 5,000 items on one thread; the changed items are among these. A round's
ratio is the p99 of its requests during changes divided by that of its requests alone; the median of the ratios counts, with their range.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from bench_catalog import generate
from turns import describe_machine, report, table, target

from edgerec import CatalogWriter, Item, Ranker
from edgerec.catalog import build_catalog

CANDIDATES, POOL = 100, 5000
CALLS = 200
RANKABLE_MS, RATIO = 50.0, 1.5


def changes(items: list[Item], batch: int, seed: int) -> Iterator[list[Item]]:
    """Batches of items with other titles, without end."""
    rng = random.Random(seed)
    for change in count():
        yield [replace(item, title=f"{item.title} {change}") for item in rng.sample(items, batch)]


def write(bundle: Path, catalog: Path, items: list[Item], batch: int, rate: float) -> None:
    """Runs in a process of its own, until it is ended."""
    with CatalogWriter.open(catalog, bundle, threads=1) as writer:
        print("ready", flush=True)
        for listed in changes(items, batch, seed=2):
            started = perf_counter()
            writer.upsert(listed)
            sleep(max(0.0, 1 / rate - (perf_counter() - started)))


@contextmanager
def writer_process(*arguments: str) -> Iterator[None]:
    """Changes are made while the block runs."""
    with subprocess.Popen([sys.executable, __file__, *arguments, "--child"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"the writer did not start: exit status {process.wait()}")
        try:
            yield
            if process.poll() is not None:
                raise SystemExit(f"the writer ended by itself: exit status {process.returncode}")
        finally:
            process.kill()


def latencies(ranker: Ranker, requests: list[tuple[str, list[str]]]) -> list[float]:
    """Milliseconds of each request."""
    times = []
    for query, ids in requests:
        started = perf_counter()
        ranker.rank(query, ids)
        times.append(1e3 * (perf_counter() - started))
    return times


def call_times(bundle: Path, catalog: Path, items: list[Item], batch: int) -> dict[str, float]:
    """Medians and p99 of an upsert, and of an upsert and the first request that sees it."""
    calls, rankable = [], []
    with Ranker.open(bundle, catalog=catalog, threads=1) as ranker, CatalogWriter.open(catalog, bundle, threads=1) as writer:
        for number, listed in enumerate(islice(changes(items, batch, seed=1), CALLS)):
            new = Item(f"new-{number}", listed[0].title)
            ranker.rank("a query before", [items[number].id])
            started = perf_counter()
            writer.upsert([new, *listed[1:]])
            called = perf_counter()
            if ranker.rank("a query after", [new.id]).ids != (new.id,):
                raise SystemExit(f"{new.id} was upserted and is not ranked")
            calls.append(1e3 * (called - started))
            rankable.append(1e3 * (perf_counter() - started))
    return {
        "upsert ms": round(statistics.median(calls), 2),
        "upsert p99 ms": round(float(np.percentile(calls, 99)), 2),
        "rankable ms": round(statistics.median(rankable), 2),
        "rankable p99 ms": round(float(np.percentile(rankable, 99)), 2),
    }


def rank_times(bundle: Path, catalog: Path, items: list[Item], options: argparse.Namespace, command: list[str]) -> dict[str, float]:
    """p99 of requests alone and during changes, and their ratio by round."""
    rng, alone, during = random.Random(3), [], []
    with Ranker.open(bundle, catalog=catalog, threads=1) as ranker:
        for number in range(options.rounds):
            requests = [
                (f"{rng.choice(items).title[:30]} {i}", [item.id for item in rng.sample(items, min(CANDIDATES, len(items)))])
                for i in range(options.requests)
            ]
            latencies(ranker, requests[:5])
            for busy in (number % 2, 1 - number % 2):
                if busy:
                    with writer_process(*command):
                        during.append(latencies(ranker, requests))
                else:
                    alone.append(latencies(ranker, requests))
    ratios = [float(np.percentile(b, 99) / np.percentile(a, 99)) for a, b in zip(alone, during, strict=True)]
    return {
        "rank p99 ms alone": round(float(np.percentile(alone, 99)), 2),
        "rank p99 ms during changes": round(float(np.percentile(during, 99)), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio min": round(min(ratios), 3),
        "ratio max": round(max(ratios), 3),
    }


def main() -> None:
    """Print the table, and write it with what it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=10, help="items of a change")
    parser.add_argument("--rate", type=float, default=10.0, help="changes a second")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=300, help="of a half round")
    parser.add_argument("--work", type=Path, help="where the catalogue is written (default: a temporary folder)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    items = list(islice(generate(options.items), POOL))
    if options.child:
        write(options.bundle, options.work, items, options.batch, options.rate)
        return
    machine = describe_machine()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        catalog = Path(work) / "catalog"
        build_catalog(generate(options.items), options.bundle, catalog)
        command = [str(options.bundle), "--items", str(options.items), "--batch", str(options.batch), "--rate", str(options.rate)]
        row: dict[str, Any] = {"items": options.items, "batch": options.batch}
        row |= call_times(options.bundle, catalog, items, options.batch)
        row |= rank_times(options.bundle, catalog, items, options, [*command, "--work", str(catalog)])
    targets = [target("rankable p99 ms", row["rankable p99 ms"], "<=", RANKABLE_MS), target("ratio", row["ratio"], "<=", RATIO)]
    print(table([row]), table(targets), sep="\n\n")
    if options.out:
        settings = {"rate": options.rate, "rounds": options.rounds, "requests": options.requests, "candidates": CANDIDATES}
        report("edgerec-bench-upsert", machine, ("numpy", "onnxruntime"), {**settings, "rows": [row], "targets": targets}, options.out)
    if not all(one["kept"] for one in targets):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
