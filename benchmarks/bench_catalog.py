"""How long does opening a catalogue take, by number of items? And building it, and looking up candidates in it?

    python benchmarks/bench_catalog.py BUNDLE --items 1000 --items 1000000 --out benchmarks/results/catalog.json

Items are generated (seeded, 4 to 14 words a title). Each catalogue is built by a process of its own, whose memory is read at the end; it
is opened by fresh processes, after a look at its files' pages has brought them to the disk cache, so the figure is that of a restarted
server, not of a machine that was just switched on.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from edgerec import Catalog, Item
from edgerec.catalog import build_catalog
from edgerec.machine import describe_machine, installed_versions, utc_now

CANDIDATES = 1000
OPENINGS = 9


def generate(count: int) -> Iterator[Item]:
    """`count` items, the same for the same number."""
    rng = random.Random(count)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvwz", k=rng.randint(3, 9))) for _ in range(20_000)]
    brands = words[:500]
    for i in range(count):
        title = " ".join(rng.choices(words, k=rng.randint(4, 14)))
        yield Item(f"sku-{i}", title, brand=rng.choice(brands), category=rng.choice(words[:200]), price=rng.uniform(1, 500))


def build(bundle: Path, folder: Path, count: int) -> dict[str, Any]:
    """Runs in a process of its own: build one catalogue, and say what it took."""
    started = perf_counter()
    for _ in generate(count):
        pass
    generating = perf_counter() - started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = perf_counter()
    info = build_catalog(generate(count), bundle, folder)
    took = perf_counter() - started - generating
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # ru_maxrss is in kilobytes on Linux, in bytes on macOS.
    grown *= 1 if sys.platform == "darwin" else 1024
    return {"build_s": round(took, 1), "items_per_s": round(count / took), "build_memory_bytes": grown, "bytes": info.segments[0].bytes}


def open_once(folder: Path, count: int) -> dict[str, Any]:
    """Runs in a process of its own: open, then find candidates twice, the second time with their pages mapped."""
    ids = [f"sku-{i}" for i in random.Random(7).sample(range(count), min(count, CANDIDATES))]
    started = perf_counter()
    catalog = Catalog.open(folder)
    opened = perf_counter()
    rows = catalog.find(ids)
    found = perf_counter()
    catalog.find(ids)
    again = perf_counter()
    if (rows < 0).any():
        raise SystemExit(f"{folder}: an item that was written is not found")
    return {"open_ms": 1e3 * (opened - started), "first_find_us": 1e6 * (found - opened), "find_us": 1e6 * (again - found)}


def child(*arguments: str) -> dict[str, Any]:
    """The answer of one of the functions above, from a fresh process."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def measure(bundle: Path, folder: Path, count: int) -> dict[str, Any]:
    """One row of the table."""
    row = {"items": count, **child(str(bundle), "--child", "build", "--work", str(folder), "--items", str(count))}
    openings = [child(str(bundle), "--child", "open", "--work", str(folder), "--items", str(count)) for _ in range(OPENINGS + 1)][1:]
    return row | {name: round(statistics.median(one[name] for one in openings), 2) for name in openings[0]}


def main() -> None:
    """Print the table, and write it with what it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--items", type=int, action="append", help="may be repeated (default: 1000 and 1000000)")
    parser.add_argument("--work", type=Path, help="where the catalogues are written (default: a temporary folder)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=("build", "open"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run = (
            open_once(arguments.work, arguments.items[0])
            if arguments.child == "open"
            else build(arguments.bundle, arguments.work, arguments.items[0])
        )
        print(json.dumps(run))
        return
    machine = describe_machine()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        rows = [measure(arguments.bundle, Path(work) / str(count), count) for count in arguments.items or (1000, 1_000_000)]
    print(f"| items | build s | items/s | memory to build MB | on disk MB | open ms | first find of {CANDIDATES} us | find us |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        sizes = f"{row['build_memory_bytes'] / 1e6:.0f} | {row['bytes'] / 1e6:.1f}"
        times = f"{row['open_ms']:.2f} | {row['first_find_us']:.0f} | {row['find_us']:.0f}"
        print(f"| {row['items']:,} | {row['build_s']} | {row['items_per_s']:,} | {sizes} | {times} |")
    if arguments.out:
        report = {
            "command": shlex.join(["python", *sys.argv]),
            "date": utc_now(),
            "machine": machine,
            "versions": installed_versions(("edgerec", "numpy", "tokenizers")),
            "candidates": CANDIDATES,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
