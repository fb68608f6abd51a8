"""How long do the items of a real shop take to become a mid-fusion student's catalogue, with one bundle beside another?

    python benchmarks/bench_items.py NATIVE ORT --data FOLDER

The bundles are those of one export, of two backends or precisions. Each builds the whole catalogue, from items in memory to files on the
disk, in turns; the figures are medians, ratios those of a round.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgerec.training.data import load_dataset
from turns import describe_machine, report, summary, table, take_turns

from edgerec import Item
from edgerec.catalog import build_catalog


def main() -> None:
    """Build in turns, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="ratios are over the first")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, help="of the engine; default: all cores that this process may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = describe_machine()
    items = list(load_dataset(options.data).items.values())
    with tempfile.TemporaryDirectory() as work:
        builds: dict[str, Callable[[list[Item]], None]] = {
            str(bundle): partial(build_again, bundle, Path(work) / "catalog", options.threads) for bundle in options.bundles
        }
        times = take_turns(builds, [items], rounds=options.rounds)
    first = str(options.bundles[0])
    rows = [{"items": len(items), **row, "items_per_s": round(1e9 * len(items) / row["median_ns"])} for row in summary(times, first)]
    for row in rows:
        row["range"] = [round(pick(a / b for a, b in zip(times[row["name"]], times[first], strict=True)), 2) for pick in (min, max)]
    shown = [{"bundle": row["name"], "s": row["median_ns"] / 1e9, "items/s": row["items_per_s"], "times": row["ratio"]} for row in rows]
    print(table(shown))
    if options.out:
        report("edgerec-bench-items", machine, ("numpy", "onnxruntime"), {"rounds": options.rounds, "rows": rows}, options.out)


def build_again(bundle: Path, catalog: Path, threads: int | None, items: list[Item]) -> None:
    """Build the catalogue where an earlier one may be."""
    if catalog.exists():
        shutil.rmtree(catalog)
    build_catalog(items, bundle, catalog, threads=threads)


if __name__ == "__main__":
    main()
